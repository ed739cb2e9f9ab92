"""Encoder: the interface between the vision transformers and what uses them. Methods, targets, probes, detectors ask for nothing else."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...checkpoints import EncoderSpec, Origin, ViewSpec
from ...utils.errors import ConfigError
from ...utils.open_sizes import is_open, is_recorded
from .lora import add_lora, is_update

OUT_TYPES = ('cls_token', 'avg_featmap', 'featmap', 'raw')


class Encoder(BaseModule):
    """A plain vision transformer: one sequence of tokens, `num_prefix_tokens` in front of those of the patches, the same width throughout.

    Two classes follow it: :class:`CAEViT`, in which CAE's own checkpoints fit, and :class:`TimmEncoder`, for the ViTs of timm. What they
    promise is checked by tests/test_models/test_encoders/test_contract.py:

    * :meth:`encode` gives the tokens of some patches, or of all, after the final norm; the others are not seen;
    * :meth:`forward` gives one output for each of `out_indices`, of the kind `out_type`, as a backbone of mmpretrain, mmdet and mmseg;
    * :meth:`grid_of` tells the patch grid of an image, :attr:`grid` that of the position table;
    * :meth:`get_layer_depth` tells the layer of a parameter, :meth:`check_pretrainable` whether it can be pretrained;
    * :attr:`spec` describes it and builds it anew, :meth:`fit_state_dict` makes weights for another grid fit.

    A subclass calls :meth:`set_outputs`, sets the attributes below, writes :meth:`embed`, :attr:`spec` and :meth:`fit_state_dict`, and
    calls :meth:`freeze` when it is built.

    Attributes:
        embed_dims: Width C of the tokens.
        num_layers: Number of blocks.
        num_prefix_tokens: Tokens in front of the patches: cls, then registers.
        has_cls: The first token is that of cls.
        in_channels: Of the images.
        patch_size: Pixels, (h, w).
        grid: Patches (rows, columns) that positions are made for.
        blocks: The transformer blocks.
        norm: The final norm of all tokens, or nn.Identity.
        view: How images are prepared, as the checkpoint tells; None where nobody does.
        origin: Where the weights come from.
    """

    embed_dims: int
    num_layers: int
    num_prefix_tokens: int = 1
    has_cls: bool = True
    in_channels: int
    patch_size: tuple[int, int]
    grid: tuple[int, int]
    blocks: Sequence[nn.Module]
    norm: nn.Module
    view: ViewSpec | None = None
    origin: Origin = Origin()
    frozen_stages: int = -1
    lora: Mapping | None = None
    embeddings: tuple[str, ...] = ('patch_embed',)  # modules in front of the blocks

    # ------------------------------------------------------------ what a subclass writes

    def embed(
        self, images: Tensor, index: Tensor | None = None, mask: Tensor | None = None, mask_token: Tensor | None = None
    ) -> tuple[Tensor, tuple[int, int], list[tuple]]:
        """Images (B, in_channels, H, W), and the raster indices (B, n) of some patches -> what the blocks take; see :meth:`encode`.

        Returns:
            Tokens (B, num_prefix_tokens + n, C) with their positions; the whole patch grid (h, w); for each block, what it needs besides.
        """
        raise NotImplementedError

    @property
    def spec(self) -> EncoderSpec:
        """The description of this encoder that goes into its checkpoints."""
        raise NotImplementedError

    def fit_state_dict(self, state: Mapping[str, Tensor], spec: EncoderSpec | None = None) -> dict[str, Tensor]:
        """A state dict under this encoder's names whose tables are resized to its grid, and the patch embedding adapted to its channels."""
        raise NotImplementedError

    # ------------------------------------------------------------ outputs

    def set_outputs(self, out_indices: int | Sequence[int], out_type: str, frozen_stages: int, with_cp: bool):
        """Check and keep the arguments that all encoders have; `num_layers` is known by then.

        Raises:
            ConfigError: An unknown `out_type`, or a block that is not there.
        """
        if out_type not in OUT_TYPES:
            raise ConfigError(f'out_type={out_type!r} is none of {OUT_TYPES}')
        if out_type == 'cls_token' and not self.has_cls:
            raise ConfigError("out_type='cls_token': this encoder has no cls token; set out_type='avg_featmap', the mean of the patches")
        if not -1 <= frozen_stages <= self.num_layers:
            raise ConfigError(f'frozen_stages={frozen_stages} must lie in [-1, {self.num_layers}], the number of blocks')
        self.out_type, self.out_indices = out_type, self.absolute_indices(out_indices)
        self.frozen_stages, self.with_cp = frozen_stages, with_cp

    def set_lora(self, lora: Mapping | None):
        """Learn by low-rank updates of the blocks behind the frozen ones; called when the blocks are there.

        Args:
            lora: Arguments of :func:`.lora.add_lora`: `dict(rank=8, alpha=16, layers='attention')`. Nothing else of the encoder is trained
                then, and a checkpoint that is read has the updates in its weights. None: no updates.

        Raises:
            ConfigError: Unknown arguments, or no weights to start from.
        """
        if lora is None:
            return
        if not isinstance(lora, Mapping):
            raise ConfigError(f'lora={lora!r} must be a dict, such as dict(rank=8, alpha=16), or None')
        if not self.init_cfg:
            raise ConfigError("lora updates weights that are there: give init_cfg=dict(type='Pretrained', checkpoint=PATH)")
        unknown = sorted(set(lora) - {'rank', 'alpha', 'layers'})
        if unknown:
            raise ConfigError(f'lora has no {", ".join(unknown)}; it has rank, alpha, layers')
        self.lora = dict(lora)
        add_lora(list(self.blocks)[max(self.frozen_stages, 0) :], **lora)

    def absolute_indices(self, out_indices: int | Sequence[int]) -> tuple[int, ...]:
        """Numbers of blocks, counted from 0.

        Raises:
            ConfigError: There is no such block, or none is named.
        """
        indices = tuple(out_indices) if isinstance(out_indices, Iterable) else (out_indices,)
        wrong = [i for i in indices if type(i) is not int or not -self.num_layers <= i < self.num_layers]
        if wrong or not indices:
            raise ConfigError(f'out_indices {wrong} name no block: give some of the {self.num_layers} of this encoder, numbered from 0')
        return tuple(i % self.num_layers for i in indices)

    def encode(self, images: Tensor, index: Tensor | None = None, mask: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        """The encoder of pretraining: latent representations of some patches, or of all.

        Args:
            images: (B, in_channels, H, W), normalised.
            index: int64 (B, n), the raster indices of the patches to encode. All patches where not given.
            mask: bool (B, N), without `index`: True where `mask_token` takes the place of a patch's embedding, before positions are added.
            mask_token: (1, 1, C).

        Returns:
            (B, num_prefix_tokens + n, C) after the final norm: the prefix, then the patches in the order of `index`.
        """
        return self.norm(self.tokens(images, index, mask, mask_token)[0])

    def tokens(
        self, images: Tensor, index: Tensor | None = None, mask: Tensor | None = None, mask_token: Tensor | None = None
    ) -> tuple[Tensor, tuple[int, int]]:
        """The same before the final norm, and the whole patch grid (h, w)."""
        x, grid, context = self.embed(images, index, mask, mask_token)
        for depth in range(self.num_layers):
            x = self.run(depth, x, context)
        return x, grid

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """One output per entry of `out_indices`, of the kind `out_type`, for images (B, in_channels, H, W)."""
        x, grid, context = self.embed(images)
        outputs = {}
        for depth in range(max(self.out_indices) + 1):
            x = self.run(depth, x, context)
            if depth in self.out_indices:
                outputs[depth] = self.output(x, grid, last=depth == self.num_layers - 1)
        return tuple(outputs[depth] for depth in self.out_indices)

    def run(self, depth: int, x: Tensor, context: list[tuple]) -> Tensor:
        """One block; recomputed in the backward pass where `with_cp` says so."""
        block, arguments = self.blocks[depth], context[depth]
        if self.with_cp and torch.is_grad_enabled() and not is_recorded():
            return checkpoint(block, x, *arguments, use_reentrant=False)
        return block(x, *arguments)

    def output(self, x: Tensor, grid: tuple[int, int], last: bool) -> Tensor:
        """What :meth:`forward` gives of the tokens after a block, which only the last block's are normalised."""
        if self.out_type == 'avg_featmap':
            # The order matters: the paper's fine-tuning normalises the mean, with the encoder's own norm as fc_norm.
            mean = x[:, self.num_prefix_tokens :].mean(dim=1)
            return self.norm_of_mean(mean) if last else mean
        x = self.norm(x) if last else x
        if self.out_type == 'cls_token':
            return x[:, 0]
        if self.out_type == 'raw':
            return x
        # Contiguous, because mmcv's RoIAlign on CPU misreads maps that keep the tokens' memory layout.
        return x[:, self.num_prefix_tokens :].transpose(1, 2).unflatten(2, grid).contiguous()

    def norm_of_mean(self, mean: Tensor) -> Tensor:
        """The final norm of the mean over the patches (B, C)."""
        return self.norm(mean)

    def grid_of(self, size: Sequence[int]) -> tuple[int, int]:
        """The patch grid (h, w) of an image of (height, width) pixels.

        Raises:
            ConfigError: The patches do not tile it.
        """
        height, width = size
        if is_open(height, width):
            # Rounded up: recorded like this, sizes that the patches do not tile have more positions than patches, and fail.
            return tuple((side + patch - 1) // patch for side, patch in zip(size, self.patch_size, strict=True))
        if height % self.patch_size[0] or width % self.patch_size[1] or not height * width:
            near = 'x'.join(str(max(1, round(side / patch)) * patch) for side, patch in zip(size, self.patch_size, strict=True))
            raise ConfigError(
                f'Images of {height}x{width} pixels (height x width) are not tiled by patches of {"x".join(map(str, self.patch_size))}: '
                f'resize, crop or pad them to a multiple of the patch size, such as {near} (by pad_size_divisor of the data preprocessor)'
            )
        return height // self.patch_size[0], width // self.patch_size[1]

    # ------------------------------------------------------------ layers, and what is trained

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """(layer, number of layers) of a parameter for layer-wise learning rates, by mmpretrain's contract.

        0 is the embeddings, i + 1 is block i, the last layer is everything behind the blocks, be it in this module or outside.
        """
        depth = self.num_layers + 2
        if not param_name.startswith(prefix):
            return depth - 1, depth
        name = self.layer_name(param_name[len(prefix) :])
        if name.startswith('blocks.'):
            return int(name.split('.')[1]) + 1, depth
        return (0 if name.endswith(('_token', 'pos_embed')) or name.startswith(self.embeddings) else depth - 1), depth

    def layer_name(self, name: str) -> str:
        """The name of a parameter as far as it tells its layer."""
        return name

    def check_pretrainable(self):
        """Fail where an argument that other tasks need does not go together with pretraining, in which the encoder sees parts of images.

        Raises:
            ConfigError: Names the argument, and why not.
        """
        for wrong, reason in self.obstacles().items():
            if reason:
                raise ConfigError(f'backbone.{wrong} cannot be pretrained: {reason}')

    def obstacles(self) -> dict[str, str | bool]:
        """Settings of this encoder, and why it cannot be pretrained with them, or something false."""
        depth = self.num_layers
        return {
            f'out_indices={self.out_indices}': max(self.out_indices) < depth - 1
            and f'the blocks behind are not trained then, and pretraining needs all {depth}: leave it out',
            f'frozen_stages={self.frozen_stages}': self.frozen_stages == depth
            and f'nothing of the encoder would learn: freeze fewer than its {depth} blocks',
        }

    def frozen_modules(self) -> list[nn.Module]:
        """What `frozen_stages` says is not trained."""
        if self.frozen_stages < 0:
            return []
        frozen = [self.get_submodule(name) for name in self.embeddings] + list(self.blocks[: self.frozen_stages])
        return [*frozen, *self.final_modules()] if self.frozen_stages == self.num_layers else frozen

    def unused_modules(self) -> list[nn.Module]:
        """What no output comes from. Distributed training stops at parameters without a gradient that it expects one for."""
        last = max(self.out_indices)
        return [] if last == self.num_layers - 1 else [*self.blocks[last + 1 :], *self.final_modules()]

    def final_modules(self) -> list[nn.Module]:
        """What comes behind the blocks."""
        return [self.norm]

    def freeze(self):
        """Take what is frozen and what is not used out of the training."""
        for module in [*self.frozen_modules(), *self.unused_modules()]:
            module.requires_grad_(False).eval()
        if self.frozen_stages >= 0:
            for name, parameter in self.named_parameters():
                if self.get_layer_depth(name)[0] == 0:
                    parameter.requires_grad_(False)
        if self.lora is not None:
            for name, parameter in self.named_parameters():
                if not is_update(name):
                    parameter.requires_grad_(False)

    def train(self, mode: bool = True):
        """Training mode for all but the frozen parts."""
        super().train(mode)
        self.freeze()
        return self


def hide(patches: Tensor, mask: Tensor | None, mask_token: Tensor | None) -> Tensor:
    """Embedded patches (B, N, C) or (B, rows, columns, C), with a mask token (1, 1, C) where a mask (B, N) is True."""
    if mask is None:
        return patches
    return torch.where(mask.view(*patches.shape[:-1], 1), mask_token.flatten().to(patches.dtype), patches)
