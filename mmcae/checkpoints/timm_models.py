"""Which model of timm a released ViT is: by the config.json beside it, or by its tensors."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmengine.utils import to_2tuple

from ..utils.errors import CheckpointError
from .layouts import TIMM_HEADS
from .reading import StateDict
from .spec import IMAGENET_MEAN, IMAGENET_STD, INTERPOLATIONS, ViewSpec
from .tables import grid_of_table, square_grid
from .timm_names import is_packed

SIZES = {
    'tiny': dict(embed_dim=192, depth=12, num_heads=3),
    'small': dict(embed_dim=384, depth=12, num_heads=6),
    'base': dict(embed_dim=768, depth=12, num_heads=12),
    'large': dict(embed_dim=1024, depth=24, num_heads=16),
    'giant': dict(embed_dim=1536, depth=40, num_heads=24),
    'huge': dict(embed_dim=1280, depth=32, num_heads=20),
}
# What the models of a family have unless an argument says otherwise.
PLAIN = dict(patch_size=16, img_size=224, in_chans=3, mlp_ratio=4.0, class_token=True, reg_tokens=0, no_embed_class=False, init_values=None)
PLAIN |= dict(qkv_bias=True, proj_bias=True, qk_norm=False)
DINOV2 = PLAIN | dict(patch_size=14, img_size=518, init_values=1e-5)
DINOV3 = dict(patch_size=16, img_size=256, in_chans=3, mlp_ratio=4.0, num_reg_tokens=4, qkv_bias=False)
FAMILIES = {
    'vit_{}_patch16_224': PLAIN,
    'vit_{}_patch14_dinov2': DINOV2,
    'vit_{}_patch14_reg4_dinov2': DINOV2 | dict(reg_tokens=4, no_embed_class=True),
    'vit_{}_patch16_dinov3': DINOV3,
    'vit_{}_plus_patch16_dinov3': DINOV3,
    'eva02_{}_patch14_224': dict(patch_size=14, img_size=224, in_chans=3, mlp_ratio=4 * 2 / 3),
}
HEAD_WIDTH = 64  # of all of DINO's models
GIANT_RATIO = 2.66667 * 2
ACTIVATIONS = {'gelu': 'gelu', 'gelu_new': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh', 'quick_gelu': 'quick_gelu', 'relu': 'relu'}
ACTIVATIONS |= {'silu': 'silu', 'swish': 'silu'}
PIL_MODES = {0: 'nearest', 1: 'lanczos', 2: 'bilinear', 3: 'bicubic', 4: 'box', 5: 'hamming'}


@dataclass
class TimmModel:
    """A model of timm.

    Args:
        arguments: Of TimmEncoder: `model_name` and those of timm; `num_heads` is None in them where it is not known.
        view: How its images are prepared.
    """

    arguments: dict[str, Any]
    view: ViewSpec | None = field(default=None)


def is_released_vit(state: Mapping) -> bool:
    """Whether an encoder without a description, under timm's names, is a plain ViT of others: CAE's and BEiT's have biases for queries and
    values, and nothing that CAEViT lacks.
    """
    foreign = ('reg_token', 'blocks.0.attn.qkv.bias', 'blocks.0.ls1.gamma', 'blocks.0.attn.q_proj.weight', 'blocks.0.mlp.fc1_g.weight')
    return any(key in state for key in (*foreign, 'rope.freqs', 'norm_pre.weight')) or is_packed(state) or 'cls_token' not in state


def timm_model_of(
    state: StateDict, config: Mapping, origin: str, num_heads: int | None = None, img_size: int | tuple[int, int] | None = None
) -> TimmModel:
    """The model of timm in which an encoder fits.

    Args:
        state: Under timm's names.
        config: The content of the config.json beside the file, with `preprocessor` in it; empty where there is none.
        origin: What to call the file in messages.
        num_heads, img_size: Where neither config nor the rules of the layout tell.

    Raises:
        CheckpointError: It is none that is known by its tensors.
    """
    if 'architecture' in config:
        return by_timm_config(config)
    wanted = img_size or config.get('image_size')
    found, family, sizes = by_tensors(state, origin, to_2tuple(wanted) if wanted else None)
    if found['num_heads'] is None:
        found['num_heads'] = config.get('num_attention_heads') or num_heads
    elif config.get('num_attention_heads'):
        found['num_heads'] = config['num_attention_heads']
    if num_heads is not None and found['num_heads'] != num_heads:
        found['num_heads'] = num_heads
    name, arguments = name_of_model(found, family, sizes)
    arguments |= by_hugging_face_config(config, family)
    size = to_2tuple(found['img_size'])
    return TimmModel(dict(model_name=name, **arguments), preprocessor_view(config.get('preprocessor') or {}, size))


def by_timm_config(config: Mapping) -> TimmModel:
    """The model that timm's own config.json names."""
    arguments = {key: value for key, value in (config.get('model_args') or {}).items() if key not in ('num_classes', 'dynamic_img_size')}
    cfg = config.get('pretrained_cfg') or {}
    if config.get('global_pool') and 'global_pool' not in arguments:
        arguments['global_pool'] = config['global_pool']
    name = str(config['architecture']).split('.')[0]
    size = tuple((cfg.get('input_size') or (3, 224, 224))[1:])
    size = to_2tuple(arguments.get('img_size', size))
    mean, std = cfg.get('mean'), cfg.get('std')
    view = None
    if mean and std:
        crop = min(float(cfg.get('crop_pct') or 1.0), 1.0)
        view = ViewSpec(pixels(mean), pixels(std), size, cfg.get('interpolation') or 'bicubic', crop)
    return TimmModel(dict(model_name=name, **arguments), view)


def by_hugging_face_config(config: Mapping, family: str) -> dict:
    """Arguments that only Hugging Face's config.json tells: the activation, the norms' epsilon, the base of the rotary positions."""
    arguments = {}
    activation, eps = config.get('hidden_act'), config.get('layer_norm_eps')
    if config.get('use_gated_mlp') and activation not in (None, 'silu'):
        raise CheckpointError(f"config.json has use_gated_mlp with hidden_act={activation!r}, and timm's gated MLPs have 'silu' alone")
    if activation not in (None, 'gelu') and not config.get('use_swiglu_ffn') and not config.get('use_gated_mlp'):
        if activation not in ACTIVATIONS:
            raise CheckpointError(f'config.json has hidden_act={activation!r}; known are {", ".join(ACTIVATIONS)}')
        arguments['act_layer'] = ACTIVATIONS[activation]
    if eps is not None and eps != (1e-5 if 'dinov3' in family else 1e-6):
        arguments['norm_layer'] = dict(type='LayerNorm', eps=eps)
    if 'dinov3' in family and config.get('rope_theta') not in (None, 100.0):
        arguments['rope_temperature'] = config['rope_theta']
    return arguments


def by_tensors(state: StateDict, origin: str, img_size: tuple[int, int] | None) -> tuple[dict, str, tuple[str, ...]]:
    """All that the tensors tell: arguments of timm, the family out of `FAMILIES`, and the sizes of it that have these parts."""
    kernel = state.get('patch_embed.proj.weight')
    if kernel is None or kernel.ndim != 4:
        raise CheckpointError(f'{origin} has no whole encoder: patch_embed.proj.weight is missing')
    for key, why in {'rope.freqs': 'learned rotary positions', 'norm_pre.weight': 'a norm in front of its blocks, as CLIP has it'}.items():
        if key in state:
            raise CheckpointError(
                f'{origin} is a ViT with {why}, which several models of timm have: name it, as in '
                "load_encoder(path, model_name='vit_base_patch16_clip_quickgelu_224')"
            )
    dim, channels, *patch = kernel.shape
    depth = len({key.split('.')[1] for key in state if key.startswith('blocks.')})
    found = dict(embed_dim=dim, depth=depth, patch_size=patch[0] if patch[0] == patch[1] else tuple(patch), in_chans=channels)
    registers = state['reg_token'].shape[1] if 'reg_token' in state else 0
    scaled = any(key.startswith('blocks.0.ls') for key in state)
    gated = is_packed(state) or 'blocks.0.mlp.fc1_g.weight' in state
    hidden = len(state['blocks.0.mlp.fc1_g.weight' if 'blocks.0.mlp.fc1_g.weight' in state else 'blocks.0.mlp.fc1.weight'])
    found['num_heads'] = dim // HEAD_WIDTH if (scaled or registers or 'pos_embed' not in state) and dim % HEAD_WIDTH == 0 else None
    if 'pos_embed' not in state:
        separate = 'blocks.0.mlp.fc1_g.weight' in state
        found |= dict(num_reg_tokens=registers, qkv_bias='blocks.0.attn.q_bias' in state or 'blocks.0.attn.qkv.bias' in state)
        found |= dict(mlp_ratio=ratio(hidden, dim), img_size=img_size or 256)
        if not separate:
            return found, 'vit_{}_patch16_dinov3', ('small', 'base', 'large')
        if hidden % 8:
            found['swiglu_align_to'] = 1
        return found, 'vit_{}_plus_patch16_dinov3', ('small', 'huge')
    if gated and not scaled:
        hidden = hidden // 2 if is_packed(state) else hidden
        found |= dict(mlp_ratio=ratio(hidden, dim), img_size=side(state['pos_embed'][:, 1:], patch, img_size, origin))
        found['num_heads'] = found['num_heads'] or (dim // HEAD_WIDTH if dim % HEAD_WIDTH == 0 else None)
        return found, 'eva02_{}_patch14_224', ('tiny', 'small') if is_packed(state) else ('base', 'large')
    cls = int('cls_token' in state)
    length = state['pos_embed'].shape[1]
    alone = registers > 0 or (square_grid(length) is not None and square_grid(length - cls) is None) or not cls
    found |= dict(
        class_token=bool(cls),
        reg_tokens=registers,
        no_embed_class=bool(alone and (cls or registers)),
        init_values=1e-5 if scaled else None,
        qkv_bias='blocks.0.attn.qkv.bias' in state,
        proj_bias='blocks.0.attn.proj.bias' in state,
        qk_norm='blocks.0.attn.q_norm.weight' in state,
        mlp_ratio=ratio(hidden, dim),
        img_size=side(state['pos_embed'][:, 0 if alone else cls :], patch, img_size, origin),
    )
    if gated:
        found |= dict(mlp_layer='SwiGLUPacked', act_layer='silu')
    if not cls:
        found['global_pool'] = 'avg' if 'fc_norm.weight' in state else ''
    if not scaled or found['patch_size'] != 14:
        found['num_heads'] = TIMM_HEADS.get((dim, depth), found['num_heads'])
        return found, 'vit_{}_patch16_224', ('tiny', 'small', 'base', 'large')
    family = 'vit_{}_patch14_reg4_dinov2' if registers else 'vit_{}_patch14_dinov2'
    return found, family, ('giant',) if gated else ('small', 'base', 'large')


def name_of_model(found: Mapping, family: str, sizes: tuple[str, ...]) -> tuple[str, dict]:
    """The name in timm, and the arguments in which an encoder differs from the model of that name."""
    own = {name: found[name] for name in ('embed_dim', 'depth', 'num_heads')}
    size = next((size for size in sizes if SIZES[size] == own), 'small' if 'small' in sizes else sizes[0])
    defaults = FAMILIES[family] | SIZES[size]
    if size == 'giant':
        defaults = defaults | dict(mlp_layer='SwiGLUPacked', act_layer='silu', mlp_ratio=GIANT_RATIO)
        if int(found['mlp_ratio'] * found['embed_dim']) == int(GIANT_RATIO * found['embed_dim']):
            defaults['mlp_ratio'] = found['mlp_ratio']
    return family.format(size), {name: value for name, value in found.items() if name not in defaults or not equal(value, defaults[name])}


def equal(first: Any, second: Any) -> bool:
    """Whether two arguments are the same, sizes of squares by one number or by two."""
    if isinstance(first, tuple) or isinstance(second, tuple):
        return to_2tuple(first) == to_2tuple(second)
    if isinstance(first, float) and isinstance(second, float):
        return math.isclose(first, second, rel_tol=1e-6)
    return first == second


def ratio(hidden: int, dim: int) -> float:
    """The number whose product with `dim` timm cuts to `hidden`."""
    exact = hidden / dim
    return exact if int(dim * exact) == hidden else (hidden + 0.5) / dim


def side(table, patch, img_size: tuple[int, int] | None, origin: str) -> int | tuple[int, int]:
    """Pixels that a position table (1, N, C) was made for: one number for a square."""
    likely = tuple(pixels // size for pixels, size in zip(img_size or (0, 0), patch, strict=True))
    grid = grid_of_table(table, likely)
    if grid is None:
        raise CheckpointError(
            f'{origin} was made for {table.shape[1]} patches, which are no square, and nothing tells their grid: give '
            'img_size=(height, width) of its training'
        )
    height, width = (cells * size for cells, size in zip(grid, patch, strict=True))
    return height if height == width else (height, width)


def preprocessor_view(config: Mapping, size: tuple[int, int]) -> ViewSpec:
    """The view of Hugging Face's preprocessor_config.json; ImageNet's where nothing is told, which all but timm's augreg ViTs have."""
    mean, std = config.get('image_mean'), config.get('image_std')
    mean, std = (pixels(mean), pixels(std)) if mean and std else (IMAGENET_MEAN, IMAGENET_STD)
    mode = config.get('resample')
    resized, cut = (edge(config.get(name)) for name in ('size', 'crop_size'))
    crop = cut / resized if cut and resized and cut <= resized and config.get('do_center_crop') else (1.0 if config else None)
    mode = PIL_MODES.get(mode, 'bicubic')
    return ViewSpec(mean, std, size, mode if mode in INTERPOLATIONS else 'bicubic', crop)


def edge(size: Any) -> int | None:
    """The short edge in a size of Hugging Face's: a number, or one by name."""
    if isinstance(size, Mapping):
        size = size.get('shortest_edge') or size.get('height')
    return size if type(size) is int else None


def pixels(values) -> tuple[float, ...]:
    """Numbers of pixels in [0, 1] for those in [0, 255]."""
    return tuple(round(255 * value, 4) for value in values)
