"""Which model of timm a released ViT is: by the config.json beside it, or by its tensors."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmengine.utils import to_2tuple

from ..utils.errors import CheckpointError, argument
from .hugging_face_configs import CLIP_TOWER, SIGLIP_TOWER, by_hugging_face_config, pixels, preprocessor_view
from .layouts import TIMM_HEADS
from .reading import StateDict
from .spec import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, ViewSpec
from .tables import grid_of_table, square_grid, unknown_grid
from .timm_names import is_packed

SIZES = {
    'tiny': dict(embed_dim=192, depth=12, num_heads=3),
    'small': dict(embed_dim=384, depth=12, num_heads=6),
    'base': dict(embed_dim=768, depth=12, num_heads=12),
    'large': dict(embed_dim=1024, depth=24, num_heads=16),
    'giant': dict(embed_dim=1536, depth=40, num_heads=24),
    'huge': dict(embed_dim=1280, depth=32, num_heads=20),
    'so400m': dict(embed_dim=1152, depth=27, num_heads=16),
}
# What the models of a family have unless an argument says otherwise.
PLAIN = dict(patch_size=16, img_size=224, in_chans=3, mlp_ratio=4.0, class_token=True, reg_tokens=0, no_embed_class=False, init_values=None)
PLAIN |= dict(qkv_bias=True, proj_bias=True, qk_norm=False, global_pool='token')
DINOV2 = PLAIN | dict(patch_size=14, img_size=518, init_values=1e-5)
SIGLIP = PLAIN | dict(class_token=False, global_pool='map')
SO400M = SIGLIP | dict(patch_size=14, mlp_ratio=4304 / 1152)
DINOV3 = dict(patch_size=16, img_size=256, in_chans=3, mlp_ratio=4.0, num_reg_tokens=4, qkv_bias=False)
FAMILIES = {
    'vit_{}_patch16_224': PLAIN,
    'deit_{}_distilled_patch16_224': PLAIN,
    'vit_{}_patch14_dinov2': DINOV2,
    'vit_{}_patch14_reg4_dinov2': DINOV2 | dict(reg_tokens=4, no_embed_class=True),
    'vit_{}_patch16_siglip_224': SIGLIP,
    'vit_{}_patch14_siglip_224': SO400M,
    'vit_{}_patch16_dinov3': DINOV3,
    'vit_{}_plus_patch16_dinov3': DINOV3,
    'eva02_{}_patch14_224': dict(patch_size=14, img_size=224, in_chans=3, mlp_ratio=4 * 2 / 3, global_pool='avg'),
}
CLIP_SIZES = {14: 'large', 16: 'base', 32: 'base'}  # by the patch, of the models that OpenAI released
FAMILIES |= {f'vit_{{}}_patch{patch}_clip_{act}224': PLAIN | dict(patch_size=patch) for patch in CLIP_SIZES for act in ('', 'quickgelu_')}
# Heads by (width, depth) of all plain ViTs that timm and its users have released. Others are asked for: heads of 64, 72, 80, 88, 104 and
# 128 channels are in use.
RELEASED_HEADS = {**TIMM_HEADS, (256, 14): 4, (320, 14): 5, (384, 36): 6, (512, 12): 8, (512, 20): 8, (640, 12): 10, (832, 21): 13}
RELEASED_HEADS |= {(896, 12): 14, (1152, 27): 16, (1536, 24): 24, (1664, 48): 16}
SIGLIP_HEADS = {**RELEASED_HEADS, (1536, 40): 16}
DINOV3_HEADS = {**TIMM_HEADS, (1280, 32): 20, (4096, 40): 32}
META_HEAD_WIDTH = 64  # in the code of DINOv2 and DINOv3, for all but the largest
PACKED = dict(mlp_layer='SwiGLUPacked', act_layer='silu')
GIANT_RATIO = 2.66667 * 2


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
    foreign = ('reg_token', 'norm_pre.weight', 'rope.freqs')
    foreign += ('blocks.0.ls1.gamma', 'blocks.0.attn.q_proj.weight', 'blocks.0.mlp.fc1_g.weight')
    own = ('cls_token', 'blocks.0.attn.q_bias')
    return any(key in state for key in foreign) or is_packed(state) or any(key not in state for key in own)


def timm_model_of(
    state: StateDict,
    config: Mapping,
    origin: str,
    num_heads: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    layout: str = 'timm',
) -> TimmModel:
    """The model of timm in which an encoder fits.

    Args:
        state: Under timm's names.
        config: The content of the config.json beside the file, with `preprocessor` in it; empty where there is none.
        origin: What to call the file in messages.
        num_heads, img_size: Where neither config nor the rules of the layout tell.
        layout: Whose file it was, see :func:`.timm_names.layout_of`.

    Raises:
        CheckpointError: It is none that is known by its tensors.
    """
    if 'architecture' in config:
        return by_timm_config(config, origin, state)
    told = config.get('image_size')  # which a table is of; without one the encoder takes any
    wanted = (told or img_size) if 'pos_embed' in state else (img_size or told)
    found, family, sizes = by_tensors(state, origin, to_2tuple(wanted) if wanted else None, layout, config)
    known = layout != 'timm' and family != 'vit_{}_patch16_224' and 'siglip' not in family
    if found['num_heads'] is None and known and found['embed_dim'] % META_HEAD_WIDTH == 0:
        found['num_heads'] = found['embed_dim'] // META_HEAD_WIDTH
    found['num_heads'] = num_heads or config.get('num_attention_heads') or found['num_heads']
    name, arguments = name_of_model(found, family, sizes)
    arguments |= by_hugging_face_config(config, family, origin)
    # All but timm's augreg ViTs have ImageNet's mean and deviation.
    mean, std = (CLIP_MEAN, CLIP_STD) if 'eva02' in family or '_clip_' in family else (IMAGENET_MEAN, IMAGENET_STD)
    if 'siglip' in family:
        mean = std = (127.5,) * 3
    view = preprocessor_view(config.get('preprocessor') or {}, to_2tuple(found['img_size']), mean, std, origin)
    return TimmModel(dict(model_name=name, **arguments), view)


def by_timm_config(config: Mapping, origin: str, state: Mapping) -> TimmModel:
    """The model that timm's own config.json names; packed SwiGLUs, which JSON cannot, are told by the tensors, as for UNI 2 and Virchow."""
    arguments = {key: value for key, value in (config.get('model_args') or {}).items() if key not in ('num_classes', 'dynamic_img_size')}
    if is_packed(state) and 'blocks.0.attn.qkv.bias' in state:
        arguments = PACKED | arguments
    cfg = config.get('pretrained_cfg') or config  # early files have it without a name
    if config.get('global_pool') and 'global_pool' not in arguments:
        arguments['global_pool'] = config['global_pool']
    name = str(config['architecture']).split('.')[0]
    size = tuple((cfg.get('input_size') or (3, 224, 224))[1:])
    size = to_2tuple(arguments.get('img_size', size))
    mean, std = cfg.get('mean'), cfg.get('std')
    view = None
    if mean and std:
        crop = min(float(cfg.get('crop_pct') or 1.0), 1.0)
        mean, std = pixels(mean, 'mean', origin), pixels(std, 'std', origin)
        view = ViewSpec(mean, std, size, cfg.get('interpolation') or 'bicubic', crop)
    return TimmModel(dict(model_name=name, **arguments), view)


def by_tensors(
    state: StateDict, origin: str, img_size: tuple[int, int] | None, layout: str, config: Mapping
) -> tuple[dict, str, tuple[str, ...]]:
    """All that the tensors tell: arguments of timm, the family out of `FAMILIES`, and the sizes of it that have these parts."""
    kernel = state.get('patch_embed.proj.weight')
    if kernel is None or kernel.ndim != 4:
        raise CheckpointError(f'{origin} has no whole encoder: patch_embed.proj.weight is missing')
    scaled = any(key.startswith('blocks.0.ls') for key in state)
    first, positions = 'blocks.0.norm1.', 'pos_embed' in state
    kind = config.get('model_type') if layout == 'huggingface' else None
    clip, siglip = (kind == tower['model_type'] for tower in (CLIP_TOWER, SIGLIP_TOWER))
    ambiguous = (
        ('learned rotary positions', 'rope.freqs' in state, 'vit_small_patch16_rope_mixed_224'),
        ('a norm in front of its blocks, as CLIP has it', 'norm_pre.weight' in state and not clip, 'vit_base_patch16_clip_quickgelu_224'),
        ('norms without biases', f'{first}weight' in state and f'{first}bias' not in state, 'aimv2_large_patch14_224'),
        ('parallel layers', f'{first}weight' not in state, 'vit_small_patch16_18x2_224'),
        ('no final norm', not {'norm.weight', 'fc_norm.weight'} & set(state), 'vit_base_patch16_radio_v3'),
        ('norms inside its attentions', 'blocks.0.attn.norm.weight' in state, 'eva02_base_patch16_clip_224'),
        ('differential attention', 'blocks.0.attn.lambda_q1' in state, 'vit_dwee_patch16_reg1_gap_256'),
        ('a biased projection and no positions', 'blocks.0.attn.qkv.bias' in state and not positions, 'vit_small_patch16_rope_224'),
        ('gamma_1 and positions', 'blocks.0.gamma_1' in state and positions, 'vit_small_patch16_rope_ape_224'),
        ('neither cls token nor positions', 'cls_token' not in state and not positions, 'vit_medium_patch16_rope_reg1_gap_256'),
        # Their activations differ, and one normalises behind its branches; Hugging Face has I-JEPA's alone under these names.
        (
            'no cls token',
            layout != 'huggingface' and not scaled and 'cls_token' not in state and positions,
            'vit_base_patch16_siglip_224',
        ),
    )
    for why, found, example in ambiguous:
        if found:
            raise CheckpointError(
                f'{origin} is a ViT with {why}, which several models of timm have: name it, as by {argument("model_name", example)}'
            )
    first_layer = 'blocks.0.mlp.fc1_g.weight' if 'blocks.0.mlp.fc1_g.weight' in state else 'blocks.0.mlp.fc1.weight'
    if first_layer not in state:
        raise CheckpointError(f'{origin} has no whole encoder: {first_layer} is missing')
    dim, channels, *patch = kernel.shape
    depth = len({key.split('.')[1] for key in state if key.startswith('blocks.')})
    found = dict(embed_dim=dim, depth=depth, patch_size=patch[0] if patch[0] == patch[1] else tuple(patch), in_chans=channels)
    registers = state['reg_token'].shape[1] if 'reg_token' in state else 0
    gated = is_packed(state) or 'blocks.0.mlp.fc1_g.weight' in state
    hidden = len(state[first_layer])
    found['num_heads'] = (RELEASED_HEADS if positions else DINOV3_HEADS).get((dim, depth))
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
        found['global_pool'] = 'token' if 'norm.weight' in state else 'avg'
        return found, 'eva02_{}_patch14_224', ('tiny', 'small') if is_packed(state) else ('base', 'large')
    cls, distilled = 'cls_token' in state, 'dist_token' in state
    length, prefix = state['pos_embed'].shape[1], cls + distilled + registers
    if layout == 'timm' and not distilled:
        # Registers have positions only where the table is a grid no other way.
        cells = None if img_size is None else math.prod(side // size for side, size in zip(img_size, patch, strict=True))
        square, behind = square_grid(length) is not None, length > prefix and square_grid(length - prefix) is not None
        alone = square and (registers > 0 or not behind) or (registers > 0 and not behind)
        alone = {length: True, length - prefix: False}.get(cells, alone)
    else:  # the others' tables begin with cls, unless it was taken out beside registers
        alone = registers > 0
    found |= dict(
        class_token=cls,
        reg_tokens=registers,
        no_embed_class=alone and prefix > 0,
        init_values=1e-5 if scaled else None,
        qkv_bias='blocks.0.attn.qkv.bias' in state,
        proj_bias='blocks.0.attn.proj.bias' in state,
        qk_norm='blocks.0.attn.q_norm.weight' in state,
        mlp_ratio=ratio(hidden, dim),
        img_size=side(state['pos_embed'][:, 0 if alone else prefix :], patch, img_size, origin),
    )
    if gated:
        found |= PACKED
    found['global_pool'] = 'avg' if 'norm.weight' not in state else 'token' if cls else ''
    if distilled:
        del found['class_token'], found['reg_tokens'], found['no_embed_class']
        return found, 'deit_{}_distilled_patch16_224', ('tiny', 'small', 'base')
    if clip:
        return found, *family_of_clip(found, config, origin)
    if siglip:
        found |= dict(global_pool='map', num_heads=SIGLIP_HEADS.get((dim, depth)))
        return found, *(('vit_{}_patch14_siglip_224', ('so400m',)) if dim == 1152 else ('vit_{}_patch16_siglip_224', ('base',)))
    if not scaled or found['patch_size'] != 14:
        return found, 'vit_{}_patch16_224', ('tiny', 'small', 'base', 'large')
    family = 'vit_{}_patch14_reg4_dinov2' if registers else 'vit_{}_patch14_dinov2'
    return found, family, ('giant',) if gated else ('small', 'base', 'large')


def family_of_clip(found: Mapping, config: Mapping, origin: str) -> tuple[str, tuple[str, ...]]:
    """The family of an image tower of CLIP, which OpenAI's activation tells from that of others, and its sizes.

    Raises:
        CheckpointError: The activation is not known.
    """
    activation = config.get('hidden_act')
    patch = found['patch_size'] if found['patch_size'] in CLIP_SIZES else 16
    own = f'vit_{{}}_patch{patch}_clip_quickgelu_224'
    if activation is None:
        named = argument('model_name', own.format(CLIP_SIZES[patch]))
        raise CheckpointError(
            f'{origin} is a CLIP without the config.json that tells its activation: put that beside it, or name the model of timm, for one '
            f"of OpenAI's by {named}"
        )
    return own if activation == 'quick_gelu' else own.replace('quickgelu_', ''), (CLIP_SIZES[patch],)


def name_of_model(found: Mapping, family: str, sizes: tuple[str, ...]) -> tuple[str, dict]:
    """The name in timm, and the arguments in which an encoder differs from the model of that name."""
    own = {name: found[name] for name in ('embed_dim', 'depth', 'num_heads')}
    size = next((size for size in sizes if SIZES[size] == own), 'small' if 'small' in sizes else sizes[0])
    defaults = FAMILIES[family] | SIZES[size]
    if size == 'giant':
        defaults = defaults | PACKED | dict(mlp_ratio=GIANT_RATIO)
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
        raise unknown_grid(origin, table)
    height, width = (cells * size for cells, size in zip(grid, patch, strict=True))
    return height if height == width else (height, width)
