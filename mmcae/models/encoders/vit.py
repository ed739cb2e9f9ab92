"""CAEViT: the vision transformer that pretraining trains and classification, detection and segmentation use."""

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.utils import to_2tuple
from timm.models import adapt_input_conv
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...checkpoints import EncoderSpec, Origin, load_encoder, pretrained_source
from ...checkpoints.tables import bias_grid, grid_of_table, resize_bias_table, resize_position_table, sincos_position_table
from ...registry import MODELS
from ...utils.errors import CheckpointError, ConfigError
from ...utils.open_sizes import is_open, is_recorded
from .layers import LAYER_NORM_EPS, Block, drop_path_rates, init_stack, pick

# The authors' sizes: tiny and small have 12 heads too.
ARCHITECTURES = {
    'tiny': dict(embed_dims=192, num_layers=12, num_heads=12),
    'small': dict(embed_dims=384, num_layers=12, num_heads=12),
    'base': dict(embed_dims=768, num_layers=12, num_heads=12),
    'large': dict(embed_dims=1024, num_layers=24, num_heads=16),
}
OUT_TYPES = ('cls_token', 'avg_featmap', 'featmap', 'raw')


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
class CAEViT(BaseModule):
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
        layer_scale_init_value: Initial layer scale; 0 leaves layer scale out.
        use_rel_pos_bias: Learn a relative position bias in every block, zero at the start.
        window_size: Height and width, in patches, of the windows within which patches attend, see :func:`.windows.window_attention`:
            cheaper on large images (ViTDet, arXiv 2203.16527). A relative position bias is then learnt for a window. None: no windows.
        global_blocks: With windows, the blocks, numbered from 0, in which all tokens attend to all.
        out_indices: Blocks after which :meth:`forward` gives an output, in this order, a block as often as it is named; negative ones
            count from the end. What comes after the last of them is neither run nor trained.
        out_type: What :meth:`forward` gives for each of them: 'cls_token' (B, C); 'avg_featmap' (B, C), the final norm of the mean
            over the patch tokens; 'featmap' (B, C, h, w), contiguous; 'raw' (B, 1 + h * w, C), the cls token first.
        final_norm: Apply the final LN to the output of the last block. The dense protocols of the paper do without.
        frozen_stages: Number of blocks, from the first, that are not trained and stay in eval mode, together with the embeddings;
            all blocks freeze the final norm too. -1: nothing is frozen.
        with_cp: Recompute the blocks' activations in the backward pass to save memory (gradient checkpointing).
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
        frozen_stages: int = -1,
        with_cp: bool = False,
        init_cfg: dict | None = None,
    ):
        super().__init__(init_cfg)
        sizes = resolve_arch(arch)
        self.embed_dims, self.num_layers = sizes['embed_dims'], sizes['num_layers']
        self.patch_size = to_2tuple(patch_size)
        self.grid = self.grid_of(to_2tuple(img_size))
        if out_type not in OUT_TYPES:
            raise ConfigError(f'out_type={out_type!r} is none of {OUT_TYPES}')
        self.out_type = out_type
        self.out_indices = self.absolute_indices(out_indices)
        if window_size is not None and window_size < 1 or window_size is None and global_blocks:
            raise ConfigError(f'window_size={window_size} with global_blocks={global_blocks}: set window_size to 1 or more patches')
        wrong = sorted(set(global_blocks) - set(range(self.num_layers)))
        if wrong:
            raise ConfigError(f'global_blocks {wrong} name no block: this encoder has {self.num_layers}, numbered from 0')
        self.window_size, self.global_blocks = window_size, tuple(global_blocks)
        windows = [None if depth in global_blocks else window_size for depth in range(self.num_layers)]
        if not -1 <= frozen_stages <= self.num_layers:
            raise ConfigError(f'frozen_stages={frozen_stages} must lie in [-1, {self.num_layers}], the number of blocks')
        self.frozen_stages = frozen_stages
        self.with_cp = with_cp
        # What the checkpoint tells of the weights that are loaded.
        self.view, self.origin = None, Origin()

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
        init_stack(self)
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
            view=self.view,
            origin=self.origin,
        )

    def encode(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        """The encoder of pretraining: latent representations of some patches, or of all.

        Args:
            images: (B, in_channels, H, W), normalised.
            index: int64 (B, n), the raster indices of the patches to encode. All patches where not given.

        Returns:
            (B, 1 + n, C) after the final norm: the cls token, then the patches in the order of `index`.

        Raises:
            ConfigError: An `index` for an encoder with windows, which consist of whole images.
        """
        if index is not None and self.window_size:
            raise ConfigError('Windows of patches need all patches of an image: pretrain without window_size, and set it for detection')
        x, grid = self.embed(images, index)
        for block in self.blocks:
            x = self.run(block, x, grid)
        return self.norm(x)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """One output per entry of `out_indices`, of the kind `out_type`, for images (B, in_channels, H, W)."""
        x, grid = self.embed(images)
        outputs = {}
        for depth, block in enumerate(self.blocks[: max(self.out_indices) + 1]):
            x = self.run(block, x, grid)
            if depth in self.out_indices:
                outputs[depth] = self.output(x, grid, last=depth == self.num_layers - 1)
        return tuple(outputs[depth] for depth in self.out_indices)

    def embed(self, images: Tensor, index: Tensor | None = None) -> tuple[Tensor, tuple[int, int]]:
        """Images (B, in_channels, H, W) -> tokens (B, 1 + n, C) with their positions, and the whole patch grid (h, w)."""
        grid = self.grid_of(images.shape[-2:])
        positions = self.positions(grid).to(images.dtype)
        x = self.patch_embed(images, index) + (positions[:, 1:] if index is None else pick(positions[:, 1:], index))
        cls = (self.cls_token + positions[:, :1]).expand(x.shape[0], -1, -1)
        return torch.cat((cls.to(x.dtype), x), dim=1), grid

    def run(self, block: Block, x: Tensor, grid: tuple[int, int]) -> Tensor:
        if self.with_cp and torch.is_grad_enabled() and not is_recorded():
            return checkpoint(block, x, grid, use_reentrant=False)
        return block(x, grid)

    def output(self, x: Tensor, grid: tuple[int, int], last: bool) -> Tensor:
        norm = self.norm if last else nn.Identity()
        if self.out_type == 'avg_featmap':
            # The order matters: the paper's fine-tuning normalises the mean, with the encoder's own norm as fc_norm.
            return norm(x[:, 1:].mean(dim=1))
        x = norm(x)
        if self.out_type == 'cls_token':
            return x[:, 0]
        if self.out_type == 'raw':
            return x
        # Contiguous, because mmcv's RoIAlign on CPU misreads maps that keep the tokens' memory layout.
        return x[:, 1:].transpose(1, 2).unflatten(2, grid).contiguous()

    def grid_of(self, size: Sequence[int]) -> tuple[int, int]:
        """The patch grid (h, w) of an image of (height, width) pixels."""
        height, width = size
        if is_open(height, width):
            # Rounded up: recorded like this, sizes that the patches do not tile have more positions than patches, and fail.
            return tuple((side + patch - 1) // patch for side, patch in zip(size, self.patch_size, strict=True))
        if height % self.patch_size[0] or width % self.patch_size[1] or not height * width:
            raise ConfigError(
                f'Images of {height}x{width} pixels (height x width) are not tiled by patches of {"x".join(map(str, self.patch_size))}: '
                'resize, crop or pad them to a multiple of the patch size (e.g. pad_size_divisor in the data preprocessor).'
            )
        return height // self.patch_size[0], width // self.patch_size[1]

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """The position table (1, 1 + h * w, C) for a patch grid (h, w); that of cls comes first and does not change."""
        if not is_open(*grid) and grid == self.grid:
            return self.pos_embed
        patches = resize_position_table(self.pos_embed[:, 1:], self.grid, grid, by_scale=True)
        return torch.cat((self.pos_embed[:, :1], patches), dim=1)

    def absolute_indices(self, out_indices: int | Sequence[int]) -> tuple[int, ...]:
        indices = tuple(out_indices) if isinstance(out_indices, Iterable) else (out_indices,)
        wrong = [i for i in indices if type(i) is not int or not -self.num_layers <= i < self.num_layers]
        if wrong or not indices:
            raise ConfigError(f'out_indices {wrong} name no block: give some of the {self.num_layers} of this encoder, numbered from 0')
        return tuple(i % self.num_layers for i in indices)

    def check_pretrainable(self):
        """Fail where an argument that other tasks need does not go together with pretraining, in which the encoder sees parts of images.

        Raises:
            ConfigError: Names the argument, and why not.
        """
        depth = self.num_layers
        for wrong, reason in {
            'use_rel_pos_bias=True': self.blocks[0].attn.bias_grid
            and 'the encoder sees only the visible patches, and the paper learns the bias afterwards: set it for fine-tuning',
            f'window_size={self.window_size}': self.window_size
            and 'windows consist of all patches of an image, and the encoder sees only the visible ones: set it for detection',
            'final_norm=False': isinstance(self.norm, nn.Identity)
            and 'regressor and alignment compare latents behind the final norm, which every checkpoint has to hold: leave it out',
            f'out_indices={self.out_indices}': max(self.out_indices) < depth - 1
            and f'the blocks behind are not trained then, and pretraining needs all {depth}: leave it out',
            f'frozen_stages={self.frozen_stages}': self.frozen_stages == depth
            and f'nothing of the encoder would learn: freeze fewer than its {depth} blocks',
        }.items():
            if reason:
                raise ConfigError(f'backbone.{wrong} cannot be pretrained: {reason}')

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """(layer, number of layers) of a parameter for layer-wise learning rates, by mmpretrain's contract.

        0 is the embeddings, i + 1 is block i, the last layer is everything behind the blocks, be it in this module or outside.
        """
        depth = self.num_layers + 2
        if not param_name.startswith(prefix):
            return depth - 1, depth
        name = param_name[len(prefix) :]
        if name in ('cls_token', 'pos_embed') or name.startswith('patch_embed'):
            return 0, depth
        if name.startswith('blocks.'):
            return int(name.split('.')[1]) + 1, depth
        return depth - 1, depth

    def init_weights(self):
        """Fresh weights, or those of the checkpoint that `init_cfg` names."""
        source = pretrained_source(self.init_cfg)
        if source is None:
            init_stack(self)
        else:
            load_encoder(self, **source)
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
            raise unknown_grid('pos_embed', table.shape[1] - 1)
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
                    raise unknown_grid(key, len(state[key]))
                fitted[key] = resize_bias_table(state[key].float(), made_for, wanted) if made_for != wanted else state[key]
        return fitted

    def frozen_modules(self) -> list[nn.Module]:
        frozen = [] if self.frozen_stages < 0 else [self.patch_embed, *self.blocks[: self.frozen_stages]]
        return [*frozen, self.norm] if self.frozen_stages == self.num_layers else frozen

    def unused_modules(self) -> list[nn.Module]:
        """What no output comes from. Distributed training stops at parameters without a gradient that it expects one for."""
        last = max(self.out_indices)
        return [] if last == self.num_layers - 1 else [*self.blocks[last + 1 :], self.norm]

    def freeze(self):
        for module in [*self.frozen_modules(), *self.unused_modules()]:
            module.requires_grad_(False).eval()
        if self.frozen_stages >= 0:
            self.cls_token.requires_grad_(False)

    def train(self, mode: bool = True):
        """Training mode for all but the frozen parts."""
        super().train(mode)
        self.freeze()
        return self


def unknown_grid(name: str, length: int) -> CheckpointError:
    """What to raise for a table that cannot be resized."""
    return CheckpointError(
        f'{name} in the checkpoint was made for a grid of {length} cells that is not square, and nothing tells which: '
        'give the model the img_size of the pretraining'
    )


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
