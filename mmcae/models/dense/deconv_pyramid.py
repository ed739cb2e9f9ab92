"""The pyramid that makes a plain ViT fit detection and segmentation heads: one map per stride out of maps of one stride."""

from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...registry import MODELS
from ...utils.errors import ConfigError


@MODELS.register_module()
class DeconvPyramid(BaseModule):
    """Deconvolution pyramid of the paper's detection and segmentation protocols (arXiv 2202.03026, section 4).

    The k-th of the encoder's maps, all of one stride (16 for patches of 16), is resampled by the k-th factor: 4 and 2 enlarge by
    transposed convolutions, 1 passes on, 1/2 is max-pooled. With the default factors the strides become 4, 8, 16, 32.

    Args:
        in_channels: Channels C of the maps, kept throughout.
        factors: Out of 4, 2, 1, 0.5, one per map.
        norm_cfg: The norm between the two transposed convolutions of factor 4.

    Raises:
        ConfigError: A factor that is none of these.
    """

    def __init__(
        self,
        in_channels: int,
        factors: tuple[float, ...] = (4, 2, 1, 0.5),
        norm_cfg: dict = dict(type='SyncBN'),  # noqa: B006  (mmcv's convention)
    ):
        super().__init__()
        self.scales = nn.ModuleList(resample([in_channels] * 3, factor, norm_cfg) for factor in factors)

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Maps (B, C, h, w), one per factor -> maps (B, C, f h, f w), contiguous.

        Raises:
            ConfigError: As many maps as factors are needed.
        """
        if len(maps) != len(self.scales):
            raise ConfigError(f'{len(maps)} maps for {len(self.scales)} factors: set out_indices of the backbone to as many blocks')
        # Contiguous, because mmcv's RoIAlign on CPU misreads other memory layouts, which deconvolutions hand on.
        return tuple(scale(x).contiguous() for scale, x in zip(self.scales, maps, strict=True))


def resample(channels: list[int], factor: float, norm_cfg: dict) -> nn.Module:
    """The module that resamples a map by a factor.

    Args:
        channels: Of the map, and after each of up to two enlargements.
        factor: 4, 2, 1 or 0.5.
        norm_cfg: The norm between two enlargements.

    Raises:
        ConfigError: Another factor.
    """
    if factor == 4:
        norm = build_norm_layer(norm_cfg, channels[1])[1]
        return nn.Sequential(double(*channels[:2]), norm, nn.GELU(), double(*channels[1:]))
    if factor == 2:
        return nn.Sequential(double(*channels[:2]))
    if factor == 1:
        return nn.Identity()
    if factor == 0.5:
        return nn.MaxPool2d(2, 2)
    raise ConfigError(f'A pyramid has the factors 4, 2, 1 and 0.5, not {factor}')


def double(in_channels: int, out_channels: int) -> nn.Module:
    """Twice the height and width."""
    return nn.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2)
