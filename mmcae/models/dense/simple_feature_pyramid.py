"""ViTDet's pyramid: every stride out of the last map of a plain ViT, without a top-down path."""

import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...registry import MODELS
from ...utils.errors import ConfigError
from .deconv_pyramid import resample


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """Simple feature pyramid (ViTDet, arXiv 2203.16527, section 3), which takes the place of a pyramid and an FPN.

    The encoder's one map, of stride 16 for patches of 16, is resampled by each factor: transposed convolutions that halve the channels
    each time, or max-pooling. Then come a 1x1 and a 3x3 convolution with norms. With the default factors the strides become 4, 8, 16, 32;
    the further map of stride 64, for the region proposals alone, is every other pixel of the last.

    Args:
        in_channels: Channels C of the map, a multiple of 4.
        out_channels: Channels of all maps that come out.
        factors: Out of 4, 2, 1, 0.5, one per map.
        num_outs: Number of maps; those beyond the factors are subsampled one from the other.
        norm_cfg: The norm behind each convolution. ViTDet normalises the channels at each place, which mmpretrain calls LN2d.

    Raises:
        ConfigError: A factor that is none of these, fewer maps than factors, or channels that cannot be halved twice.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        factors: tuple[float, ...] = (4, 2, 1, 0.5),
        num_outs: int = 5,
        norm_cfg: dict = dict(type='mmpretrain.LN2d', eps=1e-6),  # noqa: B006  (mmcv's convention)
    ):
        super().__init__()
        if in_channels % 4 or num_outs < len(factors):
            raise ConfigError(
                f'SimpleFeaturePyramid: in_channels={in_channels} must be a multiple of 4, and num_outs={num_outs} at least the number '
                f'of factors, {len(factors)}'
            )
        self.num_outs = num_outs
        halved = [in_channels, in_channels // 2, in_channels // 4]
        width = {4: halved[2], 2: halved[1]}
        self.scales = nn.ModuleList(
            nn.Sequential(
                resample(halved, factor, norm_cfg),
                ConvModule(width.get(factor, in_channels), out_channels, 1, norm_cfg=norm_cfg, act_cfg=None),
                ConvModule(out_channels, out_channels, 3, padding=1, norm_cfg=norm_cfg, act_cfg=None),
            )
            for factor in factors
        )

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """One map (B, C, h, w) in a tuple -> `num_outs` maps (B, out_channels, f h, f w), contiguous.

        Raises:
            ConfigError: There are several maps.
        """
        if len(maps) != 1:
            raise ConfigError(f'SimpleFeaturePyramid takes the map of one block, not {len(maps)}: set out_indices of the backbone to -1')
        # Contiguous, because mmcv's RoIAlign on CPU misreads other memory layouts, which convolutions hand on.
        found = [scale(maps[0]).contiguous() for scale in self.scales]
        while len(found) < self.num_outs:
            found.append(F.max_pool2d(found[-1], kernel_size=1, stride=2))
        return tuple(found)
