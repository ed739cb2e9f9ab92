"""TimmEncoder: any plain ViT of timm as the encoder of pretraining, classification, detection and segmentation."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import timm
import torch
from mmengine.utils import to_2tuple
from timm.layers import PatchEmbed, RotaryEmbeddingDinoV3, resample_abs_pos_embed
from timm.models import adapt_input_conv
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ...checkpoints import EncoderSpec, ViewSpec, load_encoder_weights, pretrained_source
from ...checkpoints.tables import square_grid
from ...checkpoints.timm_names import VIT
from ...registry import MODELS
from ...utils.errors import CheckpointError, ConfigError, nearest
from ...utils.open_sizes import is_open, resize_to_open_grid
from .base import Encoder, hide
from .layers import pick

HOMES = ('timm.models.vision_transformer', 'timm.models.deit', 'timm.models.eva')
PLAIN = (VisionTransformer, VisionTransformerDistilled, Eva)
# What is known of a plain ViT's parts; another one would not be run, or not on the patches that were picked.
PARTS = {'patch_embed', 'pos_drop', 'patch_drop', 'norm_pre', 'rope', 'blocks', 'norm'}
HEADS = {'attn_pool', 'fc_norm', 'head_drop', 'head', 'head_dist'}  # left out: what stands behind the tokens
EVA_NAMES = dict(final_norm='use_post_transformer_norm', fc_norm='use_fc_norm')
# Arguments that are decided here.
OURS = {
    'pretrained': "nothing is downloaded: give a local file by init_cfg=dict(type='Pretrained', checkpoint=PATH)",
    'pretrained_cfg': 'how images are prepared is told by the checkpoint and the data preprocessor',
    'checkpoint_path': "give a local file by init_cfg=dict(type='Pretrained', checkpoint=PATH)",
    'num_classes': 'the encoder has no classifier',
    'features_only': 'choose feature maps by out_indices and out_type',
    'patch_drop_rate': 'methods pick the patches themselves, by encode(images, index)',
    'in_channels': "timm's name of it is in_chans",
    'window_size': 'windows of attention are those of mmcae.CAEViT alone',
    'global_blocks': 'windows of attention are those of mmcae.CAEViT alone',
}


@MODELS.register_module()
class TimmEncoder(Encoder):
    """A plain ViT of timm: absolute, rotary or no positions, cls and registers, SwiGLU, layer scale, a norm in front, patches of any size.

    timm's own modules compute; this class picks the patches with their positions, and gives what :class:`.base.Encoder` promises. With all
    patches :meth:`encode` is timm's `forward_features`. Parameters have timm's names behind `vit.`, which is timm's model.

    Args:
        model_name: As in `timm.list_models()`, such as 'vit_small_patch14_dinov2'.
        out_indices, out_type, frozen_stages, with_cp, lora: See :class:`.vit.CAEViT`; registers are left out of feature maps and means.
        init_cfg: `dict(type='Pretrained', checkpoint=PATH)` loads a file of timm's, Meta's (DINOv2, DINOv3), Hugging Face's (ViT, DINOv2,
            DINOv3, CLIP, SigLIP) or mmcae's layout strictly. Nothing is downloaded.
        **arguments: Of `timm.create_model`, such as `img_size`, `drop_path_rate`, `init_values`, `global_pool`. `dynamic_img_size` is True
            by default, so that images of other sizes are taken. Layers by their names in timm.layers, such as `mlp_layer='SwiGLUPacked'`,
            norms also as `norm_layer=dict(type='LayerNorm', eps=1e-12)`. All models know `final_norm`, those of timm.models.eva too.

    Attributes:
        vit: timm's model.

    Raises:
        ConfigError: timm has no such model, or it is no plain ViT; an argument that does not fit.
    """

    embeddings = ('vit.patch_embed', 'vit.norm_pre', 'vit.rope')

    def __init__(
        self,
        model_name: str,
        out_indices: int | Sequence[int] = -1,
        out_type: str | None = None,
        frozen_stages: int = -1,
        with_cp: bool = False,
        lora: dict | None = None,
        init_cfg: dict | None = None,
        **arguments,
    ):
        super().__init__(init_cfg)
        self.model_name = model_name
        self.arguments = {name: layer_name(value, name) for name, value in translate_norms(model_name, arguments).items()}
        self.vit = vit = create_vit(model_name, self.arguments)
        self.embed_dims, self.num_layers = vit.embed_dim, len(vit.blocks)
        self.num_prefix_tokens, self.has_cls = vit.num_prefix_tokens, vit.cls_token is not None
        self.patch_size, self.in_channels = to_2tuple(vit.patch_embed.patch_size), vit.patch_embed.proj.in_channels
        self.embeddings = tuple(name for name in self.embeddings if getattr(vit, name.removeprefix(VIT), None) is not None)
        self.grid = self.grid_of(to_2tuple(vit.patch_embed.img_size))
        self.set_outputs(out_indices, out_type or ('cls_token' if self.has_cls else 'avg_featmap'), frozen_stages, with_cp)
        self.view = view_of(vit.pretrained_cfg, self.img_size)
        self.set_lora(lora)
        self.freeze()

    # ------------------------------------------------------------ parts under the names that all encoders have

    @property
    def img_size(self) -> tuple[int, int]:
        """Pixels (h, w) that positions are made for."""
        return tuple(cells * size for cells, size in zip(self.grid, self.patch_size, strict=True))

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The transformer blocks."""
        return self.vit.blocks

    @property
    def norm(self) -> nn.Module:
        """The norm behind the blocks; nn.Identity in models that normalise the mean over the patches alone."""
        return self.vit.norm

    @property
    def norm_of_tokens_or_mean(self) -> nn.Module:
        """The one final norm that the model has: of all tokens, or timm's `fc_norm` of their mean; nn.Identity with `final_norm=False`."""
        return self.vit.fc_norm if isinstance(self.norm, nn.Identity) else self.norm

    def norm_of_mean(self, mean: Tensor) -> Tensor:
        """See :meth:`.base.Encoder.norm_of_mean`."""
        return self.norm_of_tokens_or_mean(mean)

    def final_modules(self) -> list[nn.Module]:
        return [self.vit.norm, self.vit.fc_norm]

    def unused_modules(self) -> list[nn.Module]:
        """See :meth:`.base.Encoder.unused_modules`."""
        lone = [] if self.out_type == 'avg_featmap' else [self.vit.fc_norm]
        return [*super().unused_modules(), *lone]

    def layer_name(self, name: str) -> str:
        return name.removeprefix(VIT) if name.startswith(f'{VIT}blocks.') else name

    @property
    def spec(self) -> EncoderSpec:
        """The description of this encoder that goes into its checkpoints."""
        first = self.blocks[0]
        return EncoderSpec(
            embed_dims=self.embed_dims,
            num_layers=self.num_layers,
            num_heads=next(part.num_heads for part in first.modules() if hasattr(part, 'num_heads')),
            feedforward_channels=max(part.in_features for part in first.modules() if isinstance(part, nn.Linear)),
            img_size=self.img_size,
            patch_size=self.patch_size,
            in_channels=self.in_channels,
            layer_scale=any('gamma' in name for name, _ in first.named_parameters()),
            num_prefix_tokens=self.num_prefix_tokens,
            final_norm=not isinstance(self.norm, nn.Identity),
            type='TimmEncoder',
            arguments=dict(model_name=self.model_name, **self.arguments),
            view=self.view,
            origin=self.origin,
        )

    def obstacles(self) -> dict[str, str | bool]:
        """See :meth:`.base.Encoder.obstacles`."""
        pool = 'token' if self.has_cls else ''
        wrong, right = 'fc_norm=True', 'fc_norm=False'
        if self.vit.global_pool != pool:
            wrong, right = f"global_pool='{self.vit.global_pool}'", f'global_pool={pool!r}'
        none = isinstance(self.norm_of_tokens_or_mean, nn.Identity)
        return {
            'final_norm=False': none
            and f'methods compare tokens behind a final norm, and {self.model_name} has none then: set final_norm=True, and '
            "init_cfg.allow_missing=['vit.norm.'] where the checkpoint has none",
            wrong: isinstance(self.norm, nn.Identity)
            and not none
            and f'{self.model_name} then normalises the mean over the patches alone, and methods compare tokens behind a final norm: set '
            f'{right}',
            **super().obstacles(),
        }

    # ------------------------------------------------------------ computing

    def embed(
        self, images: Tensor, index: Tensor | None = None, mask: Tensor | None = None, mask_token: Tensor | None = None
    ) -> tuple[Tensor, tuple[int, int], list[tuple]]:
        """See :meth:`.base.Encoder.embed`: the rotary embedding is what blocks need besides."""
        grid = self.grid_of(images.shape[-2:])
        if not self.vit.dynamic_img_size and grid != self.grid:
            raise ConfigError(
                f'{self.model_name} takes {"x".join(map(str, self.img_size))} pixels alone with dynamic_img_size=False: leave that out'
            )
        # All patches are projected: it is the smallest part of the work, and timm knows where their positions belong.
        x = hide(self.vit.patch_embed(images), mask, mask_token)
        x, rope = self.with_open_positions(x, grid) if is_open(*grid) else self.with_positions(x)
        if index is not None:
            prefix = self.num_prefix_tokens
            x = torch.cat((x[:, :prefix], pick(x[:, prefix:], index)), dim=1)
            rope = pick_rope(rope, index)
        x = self.vit.norm_pre(x)
        if rope is None:
            return x, grid, [()] * self.num_layers
        if getattr(self.vit, 'rope_mixed', False):
            return x, grid, [(part,) for part in rope]
        return x, grid, [(rope,)] * self.num_layers

    def with_positions(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """timm's own: patches -> tokens (B, prefix + N, C) with absolute positions, and the rotary embedding, if there is one."""
        found = self.vit._pos_embed(x)
        return found if isinstance(found, tuple) else (found, None)

    def with_open_positions(self, x: Tensor, grid: tuple) -> tuple[Tensor, Tensor | None]:
        """The same for an exporter that leaves the image size open, which timm's resizing does not allow.

        Raises:
            ConfigError: The positions are rotary, and not DINOv3's.
        """
        vit = self.vit
        rope = None if getattr(vit, 'rope', None) is None else self.open_rope(vit.rope, grid)
        x = x.flatten(1, 2)
        prefix = [token.expand(x.shape[0], -1, -1) for token in (vit.cls_token, getattr(vit, 'reg_token', None)) if token is not None]
        if vit.pos_embed is None:
            return torch.cat([*prefix, x], dim=1), rope
        own = 0 if vit.no_embed_class else self.num_prefix_tokens
        x = x + resize_to_open_grid(vit.pos_embed[:, own:], self.grid, grid, antialiased=True)
        if prefix:
            front = torch.cat(prefix, dim=1)
            x = torch.cat((front + vit.pos_embed[:, :own] if own else front, x), dim=1)
        return x, rope

    def open_rope(self, rope: nn.Module, grid: tuple) -> Tensor:
        """DINOv3's rotary embedding (N, d) for a grid that is left open: places in [-1, 1] along each side."""
        if type(rope) is not RotaryEmbeddingDinoV3 or rope.normalize_coords != 'separate' or rope.grid_offset:
            raise ConfigError(
                f'{self.model_name} has rotary positions of another kind than DINOv3, which are exported for no open image size'
            )
        places = [torch.arange(size, device=rope.periods.device, dtype=rope.periods.dtype) for size in grid]
        places = [(2 * place + 1) / (place.amax(0) + 1) - 1 for place in places]
        rows, columns = torch.meshgrid(*places, indexing=rope.grid_indexing)
        return torch.cat(rope._get_pos_embed_from_coords(torch.stack((rows.flatten(), columns.flatten()), dim=1)), dim=-1)

    # ------------------------------------------------------------ weights

    def init_weights(self):
        """The weights of the checkpoint that `init_cfg` names; without one those that timm gave when it was built."""
        source = pretrained_source(self.init_cfg)
        if source is not None:
            load_encoder_weights(self, **source)
        self._is_init = True

    def fit_state_dict(self, state: Mapping[str, Tensor], spec: EncoderSpec | None = None) -> dict[str, Tensor]:
        """Positions resized as timm resizes them (bicubic, antialiased), and the patch embedding adapted to other channels.

        Args:
            state: State dict of a TimmEncoder.
            spec: Its description; where there is none, positions of another number are taken to be of a square grid.

        Raises:
            CheckpointError: The patches have another size.
        """
        fitted = dict(state)
        kernel = state.get(f'{VIT}patch_embed.proj.weight')
        if kernel is not None:
            if tuple(kernel.shape[2:]) != self.patch_size:
                raise CheckpointError(
                    f'The checkpoint has patches of {"x".join(map(str, kernel.shape[2:]))} pixels and {self.model_name} of '
                    f'{"x".join(map(str, self.patch_size))}: set patch_size={kernel.shape[2]} in the encoder, or choose the model '
                    'of timm that the checkpoint is of'
                )
            if kernel.shape[1] == 3 != self.in_channels:
                fitted[f'{VIT}patch_embed.proj.weight'] = adapt_input_conv(self.in_channels, kernel)
        table = state.get(f'{VIT}pos_embed')
        if table is not None and self.vit.pos_embed is not None and table.shape[-1] == self.embed_dims:
            prefix = 0 if self.vit.no_embed_class else self.num_prefix_tokens
            count = table.shape[1] - prefix
            source = spec.grid if spec and spec.grid[0] * spec.grid[1] == count else square_grid(count)
            # A table of no grid has rows for other prefix tokens than the model's: it stays, and its shape is reported.
            if source is not None and (count != len(self.vit.pos_embed[0]) - prefix or source != self.grid):
                fitted[f'{VIT}pos_embed'] = resample_abs_pos_embed(table.float(), self.grid, source, num_prefix_tokens=prefix)
        return fitted


def translate_norms(model_name: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of timm's model: `final_norm` and `fc_norm` under the names that timm.models.eva has for them."""
    if not isinstance(model_name, str) or not timm.models.is_model_in_modules(model_name.split('.')[0], 'eva'):
        return dict(arguments)
    named = {EVA_NAMES.get(name, name): value for name, value in arguments.items()}
    return {'use_fc_norm': False} | named if 'final_norm' in arguments else named


def create_vit(model_name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """timm's model without what stands behind its tokens.

    Raises:
        ConfigError: There is none of this name, it is no plain ViT, or it does not take the arguments.
    """
    if not isinstance(model_name, str) or not timm.is_model(model_name):
        name = str(model_name)
        near = nearest(name, timm.list_models(module='vision_transformer') + timm.list_models(module='eva'))
        raise ConfigError(f'timm has no model {name!r}{near}; plain ViTs are in timm.list_models("vit_*")')
    for name in arguments:
        if name in OURS:
            raise ConfigError(f'TimmEncoder: {name}={arguments[name]!r} cannot be set: {OURS[name]}')
    home = timm.model_entrypoint(model_name).__module__
    if home.startswith('timm.models.') and home not in HOMES:
        raise not_plain(model_name, f'it is of {home}')
    settings = dict(dynamic_img_size=True) | {name: layer_of(value, name) for name, value in arguments.items()}
    try:
        vit = timm.create_model(model_name, num_classes=0, **settings)
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else 'an assertion in timm failed: do embed_dim and num_heads fit?'
        raise ConfigError(f'timm.create_model({model_name!r}) refuses {dict(arguments)}: {reason}') from error
    if type(vit) not in PLAIN:
        raise not_plain(model_name, f'it is a {type(vit).__name__}')
    unknown = sorted({name for name, module in vit.named_children() if any(True for _ in module.parameters())} - PARTS - HEADS)
    if unknown:
        raise not_plain(model_name, f'it has further parts, {", ".join(unknown)}')
    if type(vit.patch_embed) is not PatchEmbed or not isinstance(vit.patch_embed.proj, nn.Conv2d):
        raise not_plain(model_name, f'its patches go through a {type(vit.patch_embed).__name__}')
    for name in HEADS & set(dict(vit.named_children())):
        if name != 'fc_norm' or not isinstance(vit.norm, nn.Identity):
            setattr(vit, name, None if name == 'attn_pool' else nn.Identity())
    return vit


def not_plain(model_name: str, why: str) -> ConfigError:
    """What to raise for another kind of model."""
    return ConfigError(
        f'{model_name} is no plain ViT: {why}. TimmEncoder takes those of timm.models.vision_transformer, deit and eva, such as '
        "'vit_small_patch16_224', 'vit_small_patch14_dinov2', 'vit_small_patch16_dinov3', 'eva02_small_patch14_224'"
        + ('; for BEiT use mmcae.CAEViT' if 'beit' in model_name else '')
    )


def layer_name(value: Any, argument: str) -> Any:
    """A class of timm.layers or torch.nn by its name, so that the argument can be written to a file; anything else as it is."""
    if isinstance(value, type):
        for home in (timm.layers, nn):
            if getattr(home, value.__name__, None) is value:
                return value.__name__
    if callable(value):
        raise ConfigError(f'TimmEncoder: {argument}={value!r} cannot be kept in a checkpoint: name a class of timm.layers or torch.nn')
    return value


def layer_of(value: Any, argument: str) -> Any:
    """The class behind a name given to one of timm's arguments for layers.

    Raises:
        ConfigError: There is no such class.
    """
    if isinstance(value, Mapping) and argument == 'norm_layer':
        return partial(layer_of(value['type'], argument), **{name: given for name, given in value.items() if name != 'type'})
    if not isinstance(value, str) or not argument.endswith(('_layer', '_fn')):
        return value
    found = next((layer for home in (timm.layers, nn) if isinstance(layer := getattr(home, value, None), type | partial)), None)
    if found is None and argument not in ('norm_layer', 'act_layer', 'embed_norm_layer'):  # timm knows short names for these
        raise ConfigError(f'TimmEncoder: {argument}={value!r} is neither in timm.layers nor in torch.nn')
    return found or value


def pick_rope(rope: Tensor | None, index: Tensor) -> Tensor | None:
    """The rotary embedding of some patches.

    Args:
        rope: (N, d) for all blocks and heads, or (depth, heads, N, d).
        index: int64 (B, n).

    Returns:
        (B, 1, n, d), or (depth, B, heads, n, d).
    """
    if rope is None:
        return None
    if rope.ndim == 2:
        return rope[index].unsqueeze(1)
    return rope[:, :, index].permute(0, 2, 1, 3, 4)


def view_of(pretrained_cfg: Any, size: tuple[int, int]) -> ViewSpec:
    """How timm prepares images for a model, for another size as well."""
    config = pretrained_cfg if isinstance(pretrained_cfg, Mapping) else dict(pretrained_cfg or {})
    mean, std = (tuple(round(255 * value, 4) for value in config[name]) for name in ('mean', 'std'))
    return ViewSpec(mean, std, size, config.get('interpolation') or 'bicubic', min(float(config.get('crop_pct') or 1.0), 1.0))
