"""CAEViT: the vision transformer that pretraining trains and classification, detection and segmentation use."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from mmengine.utils import to_2tuple
from timm.models import adapt_input_conv
from torch import Tensor, nn

from ...checkpoints import EncoderSpec, load_encoder_weights, pretrained_source
from ...checkpoints.tables import bias_grid, cannot_resize, grid_of_table, resize_bias_table, resize_position_table, sincos_position_table
from ...registry import MODELS
from ...utils.errors import ConfigError
from ...utils.open_sizes import is_open
from .base import Encoder, hide
from .layers import LAYER_NORM_EPS, Block, drop_path_rates, init_stack, pick

# The authors' sizes: tiny and small have 12 heads too.
ARCHITECTURES = {
    'tiny': dict(embed_dims=192, num_layers=12, num_heads=12),
    'small': dict(embed_dims=384, num_layers=12, num_heads=12),
    'base': dict(embed_dims=768, num_layers=12, num_heads=12),
    'large': dict(embed_dims=1024, num_layers=24, num_heads=16),
}


class PatchEmbed(nn.Module):
    """Cuts images into patches and projects each to a token: (B, in_channels, H, W) -> (B, N, C) in raster order.

    Given the raster indices (B, n) of some patches it projects these alone, to (B, n, C).
    """

    def __init__(self, in_channels: int, dim: int, patch_size: tuple[int, int]):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, patch_size, patch_size)

    def forward(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        if index is None:
            return self.proj(images).flatten(2).transpose(1, 2)
        rows, columns = self.proj.kernel_size
        tiles = images.unflatten(3, (-1, columns)).unflatten(2, (-1, rows))
        patches = tiles.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return F.linear(pick(patches, index), self.proj.weight.flatten(1), self.proj.bias)


@MODELS.register_module()
class CAEViT(Encoder):
    """The encoder of CAE (arXiv 2202.03026, section 3), and the same class as backbone of what follows.

    A plain pre-norm ViT with a cls token, a fixed sin-cos position table and layer scale. Parameter names are BEiT's.

    Args:
        arch: 'tiny', 'small', 'base', 'large', or a dict with `embed_dims`, `num_layers`, `num_heads` and optionally
            `feedforward_channels` (4 * embed_dims where absent).
        img_size: Pixels, (h, w) or one number for both, whose patch grid the position table and the bias tables are made for.
            Inputs of other sizes are fine: the tables are resized to them.
        patch_size: Pixels, (h, w) or one number for both. Inputs must be multiples of it.
        in_channels: Channels of the images.
        drop_path_rate: Stochastic depth of the last block in [0, 1); earlier blocks have linearly less, the first none.
        layer_scale_init_value: Initial layer scale; 0 leaves layer scale out. Where a checkpoint of `init_cfg` has one then, it is merged
            into the weights: the features are the same, and the scale is no parameter of its own.
        use_rel_pos_bias: Learn a relative position bias in every block, zero at the start.
        window_size: Height and width, in patches, of the windows within which patches attend, see :func:`.windows.window_attention`:
            cheaper on large images (ViTDet, arXiv 2203.16527). A relative position bias is then learnt for a window. None: no windows.
        global_blocks: With windows, the blocks, numbered from 0, in which all tokens attend to all.
        out_indices: Blocks after which :meth:`forward` gives an output, in this order, a block as often as it is named; negative ones
            count from the end. What comes after the last of them is neither run nor trained.
        out_type: What :meth:`forward` gives for each of them: 'cls_token' (B, C); 'avg_featmap' (B, C), the final norm of the mean
            over the patch tokens; 'featmap' (B, C, h, w), contiguous; 'raw' (B, 1 + h * w, C), the cls token first.
        final_norm: Apply the final LN to the output of the last block. The dense protocols of the paper do without.
        norm_eps: Added to variances in all norms; Hugging Face's BEiT has 1e-12.
        frozen_stages: Number of blocks, from the first, that are not trained and stay in eval mode, together with the embeddings;
            all blocks freeze the final norm too. -1: nothing is frozen.
        with_cp: Recompute the blocks' activations in the backward pass to save memory (gradient checkpointing).
        lora: Train low-rank updates alone, `dict(rank=8, alpha=16, layers='attention')`; see :func:`.lora.add_lora`.
        init_cfg: `dict(type='Pretrained', checkpoint=PATH)` loads an encoder through the strict loader of
            :mod:`mmcae.checkpoints`: any mmcae, official or mmpretrain CAE checkpoint.

    Raises:
        ConfigError: An unknown `arch` or `out_type`, an `img_size` or input that the patches do not tile, a block that is not there,
            a `window_size` below 1, or `global_blocks` without windows.
    """

    def __init__(
        self,
        arch: str | dict = 'base',
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_channels: int = 3,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 0.1,
        use_rel_pos_bias: bool = False,
        window_size: int | None = None,
        global_blocks: Sequence[int] = (),
        out_indices: int | Sequence[int] = -1,
        out_type: str = 'cls_token',
        final_norm: bool = True,
        norm_eps: float = LAYER_NORM_EPS,
        frozen_stages: int = -1,
        with_cp: bool = False,
        lora: dict | None = None,
        init_cfg: dict | None = None,
    ):
        super().__init__(init_cfg)
        sizes = resolve_arch(arch)
        self.embed_dims, self.num_layers = sizes['embed_dims'], sizes['num_layers']
        self.patch_size = to_2tuple(patch_size)
        self.grid = self.grid_of(to_2tuple(img_size))
        self.set_outputs(out_indices, out_type, frozen_stages, with_cp)
        if window_size is not None and window_size < 1 or window_size is None and global_blocks:
            raise ConfigError(f'window_size={window_size} with global_blocks={global_blocks}: set window_size to 1 or more patches')
        wrong = sorted(set(global_blocks) - set(range(self.num_layers)))
        if wrong:
            raise ConfigError(f'global_blocks {wrong} name no block: this encoder has {self.num_layers}, numbered from 0')
        self.window_size, self.global_blocks = window_size, tuple(global_blocks)
        windows = [None if depth in global_blocks else window_size for depth in range(self.num_layers)]
        self.in_channels = in_channels
        self.patch_embed = PatchEmbed(in_channels, self.embed_dims, self.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, self.embed_dims))
        # A buffer, since it is never trained; persistent, since checkpoints of the field carry it. cls has the position zero.
        table = sincos_position_table(self.grid, self.embed_dims)
        self.register_buffer('pos_embed', torch.cat((torch.zeros(1, 1, self.embed_dims), table), dim=1))
        self.blocks = nn.ModuleList(
            Block(
                self.embed_dims,
                sizes['num_heads'],
                sizes.get('feedforward_channels'),
                drop_path=rate,
                init_value=layer_scale_init_value,
                bias_grid=(to_2tuple(window) if window else self.grid) if use_rel_pos_bias else None,
                window=window,
            )
            for window, rate in zip(windows, drop_path_rates(drop_path_rate, self.num_layers), strict=True)
        )
        self.norm = nn.LayerNorm(self.embed_dims, eps=LAYER_NORM_EPS) if final_norm else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = norm_eps
        self.norm_eps = norm_eps
        init_stack(self)
        self.set_lora(lora)
        self.freeze()

    @property
    def spec(self) -> EncoderSpec:
        """The description of this encoder that goes into its checkpoints."""
        attention = self.blocks[0].attn
        return EncoderSpec(
            embed_dims=self.embed_dims,
            num_layers=self.num_layers,
            num_heads=attention.num_heads,
            feedforward_channels=self.blocks[0].mlp.fc1.out_features,
            img_size=tuple(cells * size for cells, size in zip(self.grid, self.patch_size, strict=True)),
            patch_size=self.patch_size,
            in_channels=self.patch_embed.proj.in_channels,
            layer_scale=self.blocks[0].gamma_1 is not None,
            use_rel_pos_bias=attention.bias_grid is not None,
            window_size=self.window_size,
            global_blocks=self.global_blocks,
            final_norm=not isinstance(self.norm, nn.Identity),
            arguments={} if self.norm_eps == LAYER_NORM_EPS else dict(norm_eps=self.norm_eps),
            view=self.view,
            origin=self.origin,
        )

    def encode(self, images: Tensor, index: Tensor | None = None, mask: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        """See :meth:`.base.Encoder.encode`.

        Raises:
            ConfigError: An `index` for an encoder with windows, which consist of whole images.
        """
        if index is not None and self.window_size:
            raise ConfigError('Windows of patches need all patches of an image: pretrain without window_size, and set it for detection')
        return super().encode(images, index, mask, mask_token)

    def embed(
        self, images: Tensor, index: Tensor | None = None, mask: Tensor | None = None, mask_token: Tensor | None = None
    ) -> tuple[Tensor, tuple[int, int], list[tuple]]:
        """See :meth:`.base.Encoder.embed`: tokens (B, 1 + n, C), and for each block the grid."""
        grid = self.grid_of(images.shape[-2:])
        positions = self.positions(grid).to(images.dtype)
        x = hide(self.patch_embed(images, index), mask, mask_token)
        x = x + (positions[:, 1:] if index is None else pick(positions[:, 1:], index))
        cls = (self.cls_token + positions[:, :1]).expand(x.shape[0], -1, -1)
        return torch.cat((cls.to(x.dtype), x), dim=1), grid, [(grid,)] * self.num_layers

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """The position table (1, 1 + h * w, C) for a patch grid (h, w); that of cls comes first and does not change."""
        if not is_open(*grid) and grid == self.grid:
            return self.pos_embed
        patches = resize_position_table(self.pos_embed[:, 1:], self.grid, grid, by_scale=True)
        return torch.cat((self.pos_embed[:, :1], patches), dim=1)

    def obstacles(self) -> dict[str, str | bool]:
        """See :meth:`.base.Encoder.obstacles`."""
        return {
            'use_rel_pos_bias=True': self.blocks[0].attn.bias_grid
            and 'the encoder sees only the visible patches, and the paper learns the bias afterwards: set it for fine-tuning',
            f'window_size={self.window_size}': self.window_size
            and 'windows consist of all patches of an image, and the encoder sees only the visible ones: set it for detection',
            'final_norm=False': isinstance(self.norm, nn.Identity)
            and 'regressor and alignment compare latents behind the final norm, which every checkpoint has to hold: leave it out',
            **super().obstacles(),
        }

    def init_weights(self):
        """Fresh weights, or those of the checkpoint that `init_cfg` names."""
        source = pretrained_source(self.init_cfg)
        if source is None:
            init_stack(self)
        else:
            load_encoder_weights(self, **source)
        self._is_init = True

    def fit_state_dict(self, state: Mapping[str, Tensor], spec: EncoderSpec | None = None) -> dict[str, Tensor]:
        """Make an encoder's state dict fit this one's image size and channels.

        Position and bias tables are resized from their own grid to this one's. A patch embedding of 3 channels is adapted to other numbers
        as timm does: for one channel it is summed, so that a grey image gives what it gives as RGB; for more it is repeated and scaled by
        3 / in_channels, so that activations keep their size.

        Args:
            state: State dict of a CAEViT.
            spec: Its description. Where there is none, a sin-cos table tells its grid, and a learned one of another length is taken to be
                square.

        Raises:
            CheckpointError: The grid of a table is not known.
        """
        fitted = dict(state)
        table = state.get('pos_embed')
        source = spec.grid if spec else self.grid if table is None else grid_of_table(table[:, 1:], self.grid)
        if source is None:
            raise cannot_resize('pos_embed', table.shape[1] - 1)
        if table is not None and source != self.grid:
            patches = resize_position_table(table[:, 1:].float(), source, self.grid)
            fitted['pos_embed'] = torch.cat((table[:, :1].float(), patches), dim=1)
        kernel = state.get('patch_embed.proj.weight')
        if kernel is not None and kernel.shape[1] == 3 != self.patch_embed.proj.in_channels:
            fitted['patch_embed.proj.weight'] = adapt_input_conv(self.patch_embed.proj.in_channels, kernel)
        for number, block in enumerate(self.blocks):
            key, wanted = f'blocks.{number}.attn.relative_position_bias_table', block.attn.bias_grid
            if wanted and key in state:
                made_for = bias_grid(state[key], source)
                if made_for is None:
                    raise cannot_resize(key, len(state[key]))
                fitted[key] = resize_bias_table(state[key].float(), made_for, wanted) if made_for != wanted else state[key]
        return fitted


def resolve_arch(arch: str | dict) -> dict:
    """The sizes behind a name or dict of sizes."""
    if isinstance(arch, str):
        if arch not in ARCHITECTURES:
            raise ConfigError(
                f'arch={arch!r} is none of {sorted(ARCHITECTURES)}; give a dict(embed_dims=, num_layers=, num_heads=) for others'
            )
        return ARCHITECTURES[arch]
    missing = {'embed_dims', 'num_layers', 'num_heads'} - set(arch)
    unknown = set(arch) - {'embed_dims', 'num_layers', 'num_heads', 'feedforward_channels'}
    if missing or unknown:
        raise ConfigError(f'arch={dict(arch)}: missing keys {sorted(missing)}, unknown keys {sorted(unknown)}')
    return arch
