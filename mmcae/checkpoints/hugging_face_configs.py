"""What Hugging Face's config.json and preprocessor_config.json tell of an encoder that its tensors do not."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.utils import to_2tuple

from ..utils.errors import CheckpointError
from .spec import INTERPOLATIONS, ViewSpec
from .timm_names import HUGGING_FACE_LAYER

ACTIVATIONS = {'gelu': 'gelu', 'gelu_new': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh', 'quick_gelu': 'quick_gelu', 'relu': 'relu'}
ACTIVATIONS |= {'silu': 'silu', 'swish': 'silu'}
PIL_MODES = {0: 'nearest', 1: 'lanczos', 2: 'bilinear', 3: 'bicubic', 4: 'box', 5: 'hamming'}
NUMBERS = dict(num_attention_heads=int, layer_norm_eps=(int, float), rope_theta=(int, float), image_size=(int, list))
# Image towers, and what their classes have where config.json is silent, as released ones are.
CLIP_TOWER = dict(model_type='clip_vision_model', layer_norm_eps=1e-5, hidden_act='quick_gelu')
SIGLIP_TOWER = dict(model_type='siglip_vision_model', layer_norm_eps=1e-6, hidden_act='gelu_pytorch_tanh')
HIDDEN = ('intermediate.dense.weight', 'mlp.fc1.weight', 'mlp.up_proj.weight')


def checked_config(config: Mapping, state: Mapping, origin: str) -> dict:
    """Hugging Face's config.json, with the epsilon that its ViT and BEiT have by default; of CLIP and SigLIP what it tells of images.

    Args:
        config: Its content, empty where there is none.
        state: The tensors beside it, under Hugging Face's names.
        origin: What to call the file in messages.

    Raises:
        CheckpointError: It has a value of another type, or is of another model than the tensors.
    """
    tower = 'embeddings.patch_embedding.weight' in state
    if tower:
        config = config_of_tower(config, state)
    for name, kind in NUMBERS.items():
        value = config.get(name)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise CheckpointError(f'{origin}: config.json has {name}={value!r}, which is no number')
    tensors = told_by_tensors(state)
    for name, found in tensors.items():
        value = config.get(name)
        if value is not None and as_pair(value) != as_pair(found):
            raise CheckpointError(f'{origin}: config.json has {name}={value!r}, and the tensors have {found}: it is of another model')
    width, heads, size = tensors['hidden_size'], config.get('num_attention_heads'), config.get('image_size')
    if heads is not None and (heads < 1 or width % heads):
        raise CheckpointError(f'{origin}: config.json has num_attention_heads={heads}, which does not divide the width {width}')
    table = state['embeddings.position_embedding.weight'][None] if tower else state.get('embeddings.position_embeddings')
    if size is not None and table is not None:
        cells = math.prod(pixels // patch for pixels, patch in zip(to_2tuple(size), tensors['patch_size'], strict=True))
        rows = cells + sum(f'embeddings.{name}' in state for name in ('cls_token', 'distillation_token', 'class_embedding'))
        if table.shape[1] != rows:
            raise CheckpointError(
                f'{origin}: config.json has image_size={size!r}, whose positions are {rows}, and the tensors have {table.shape[1]}: it is '
                'of another model'
            )
    scaled = any('.layer_scale1.' in key for key in state)
    return ({} if scaled else dict(layer_norm_eps=1e-12)) | dict(config)


def config_of_tower(config: Mapping, state: Mapping) -> dict:
    """The part of config.json that is of the image tower of CLIP or SigLIP, which a file of the whole model has under `vision_config`.

    Args:
        config: Its content, empty where there is none: the activation of CLIP is not known then, OpenAI's differs from that of others.
        state: The tower's tensors.
    """
    clip = 'pre_layrnorm.weight' in state
    parts = [config.get(name) for name in ('vision_config', 'vision_config_dict')]  # the latter in early files, where it has the last word
    parts = [part for part in parts if isinstance(part, Mapping)] or [config]
    told = {name: value for part in parts for name, value in part.items()} | dict(preprocessor=config.get('preprocessor'))
    unsaid = dict(num_attention_heads=12, image_size=224) if config else {}
    defaults = (CLIP_TOWER if clip else SIGLIP_TOWER) | unsaid
    if clip and not config:
        del defaults['hidden_act']
    return {**defaults, **told, 'model_type': defaults['model_type']}


def told_by_tensors(state: Mapping) -> dict[str, Any]:
    """The values of config.json that the tensors tell as well."""
    kernel = next(value for key, value in state.items() if key.startswith('embeddings.patch_embedding') and value.ndim == 4)
    width, channels, *patch = kernel.shape
    found = dict(hidden_size=width, num_channels=channels, patch_size=tuple(patch))
    found['num_hidden_layers'] = len({match[1] for match in map(HUGGING_FACE_LAYER.match, state) if match})
    hidden = next((len(value) for key, value in state.items() if key.endswith(HIDDEN)), None)
    registers = state.get('embeddings.register_tokens')
    gated = any('.mlp.gate_proj.' in key for key in state)
    return found | dict(
        intermediate_size=hidden,
        num_register_tokens=0 if registers is None else registers.shape[1],
        use_gated_mlp=gated,
        use_swiglu_ffn=gated or any('.mlp.weights_in.' in key for key in state),
    )


def as_pair(value: Any) -> Any:
    """A size by two numbers; anything else as it is."""
    return to_2tuple(value) if type(value) is int else tuple(value) if isinstance(value, list) else value


def by_hugging_face_config(config: Mapping, family: str, origin: str) -> dict:
    """Arguments that only Hugging Face's config.json tells: the activation, the norms' epsilon, the base of the rotary positions.

    Raises:
        CheckpointError: timm has no such activation.
    """
    arguments = {}
    activation, eps = config.get('hidden_act'), config.get('layer_norm_eps')
    if config.get('use_gated_mlp') and activation not in (None, 'silu'):
        raise CheckpointError(
            f"{origin}: config.json has use_gated_mlp with hidden_act={activation!r}, and timm's gated MLPs have 'silu' alone"
        )
    if (
        activation not in (None, 'quick_gelu' if 'quickgelu' in family else 'gelu')
        and not config.get('use_swiglu_ffn')
        and not config.get('use_gated_mlp')
    ):
        if activation not in ACTIVATIONS:
            raise CheckpointError(f'{origin}: config.json has hidden_act={activation!r}; known are {", ".join(ACTIVATIONS)}')
        arguments['act_layer'] = ACTIVATIONS[activation]
    if eps is not None and eps != (1e-5 if 'dinov3' in family or '_clip_' in family else 1e-6):
        arguments['norm_layer'] = dict(type='LayerNorm', eps=eps)
    if 'dinov3' in family and config.get('rope_theta') not in (None, 100.0):
        arguments['rope_temperature'] = config['rope_theta']
    return arguments


def preprocessor_view(config: Mapping, size: tuple[int, int], mean: Sequence[float], std: Sequence[float], origin: str) -> ViewSpec:
    """The view of Hugging Face's preprocessor_config.json.

    Args:
        config: Its content, empty where there is none.
        size: Pixels (h, w) of the encoder.
        mean, std: Where it does not tell.
        origin: What to call the folder in messages.

    Raises:
        CheckpointError: A value is of another type.
    """
    scale = number(config, 'rescale_factor', 1 / 255, origin) if config.get('do_rescale', True) else 1
    given = [config.get(name) for name in ('image_mean', 'image_std')]
    if config.get('do_normalize') is False:
        mean, std = (0.0,), (1 / scale,)
    elif None not in given:
        mean, std = (pixels(value, name, origin, scale) for value, name in zip(given, ('image_mean', 'image_std'), strict=True))
    mode = config.get('resample')
    resized, cut = (edge(config.get(name)) for name in ('size', 'crop_size'))
    crop = cut / resized if cut and resized and cut <= resized and config.get('do_center_crop') else (1.0 if config else None)
    mode = PIL_MODES.get(mode, 'bicubic') if isinstance(mode, int) else 'bicubic'
    return ViewSpec(mean, std, size, mode if mode in INTERPOLATIONS else 'bicubic', crop)


def number(config: Mapping, name: str, default: float, origin: str) -> float:
    """A positive number of preprocessor_config.json.

    Raises:
        CheckpointError: It is none.
    """
    value = config.get(name, default)
    if type(value) not in (int, float) or not value > 0:
        raise CheckpointError(f'{origin}: preprocessor_config.json has {name}={value!r}, which is no number above 0')
    return value


def edge(size: Any) -> int | None:
    """The short edge in a size of Hugging Face's: a number, or one by name."""
    if isinstance(size, Mapping):
        size = size.get('shortest_edge') or size.get('height')
    return size if type(size) is int else None


def pixels(values: Any, name: str, origin: str, scale: float = 1 / 255) -> tuple[float, ...]:
    """A mean or a deviation of rescaled pixels for those in [0, 255].

    Args:
        values: A number for each channel, or one for all.
        name: What the file calls it.
        origin: What to call the file in messages.
        scale: By what pixels are multiplied.

    Raises:
        CheckpointError: They are no numbers.
    """
    values = values if isinstance(values, list | tuple) else [values]
    if any(type(value) not in (int, float) for value in values) or not values:
        raise CheckpointError(f'{origin}: the file that says how images are prepared has {name}={values!r}, which are no numbers')
    return tuple(round(value / scale, 4) for value in values)
