"""An encoder as a folder of Hugging Face's: config.json, model.safetensors, preprocessor_config.json and a model card."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from ..utils.errors import CheckpointError
from .exporting import refuse, unusual_blocks
from .hugging_face_configs import PIL_MODES
from .reading import StateDict, write_state_dict
from .spec import EncoderSpec, ViewSpec

# timm's names inside a block, and Hugging Face's: those that ViT and BEiT share, DINOv2's and DINOv3's.
ATTENTION = {'attn.proj.': 'attention.output.dense.'}
VIT = ATTENTION | {
    'norm1.': 'layernorm_before.',
    'norm2.': 'layernorm_after.',
    'mlp.fc1.': 'intermediate.dense.',
    'mlp.fc2.': 'output.dense.',
}
BEIT = VIT | {
    'gamma_1': 'lambda_1',
    'gamma_2': 'lambda_2',
    'attn.relative_position_bias_table': 'attention.attention.relative_position_bias.relative_position_bias_table',
}
SAME = {name: name for name in ('norm1.', 'norm2.', 'mlp.fc1.', 'mlp.fc2.')}
DINOV2 = ATTENTION | SAME | {'ls1.gamma': 'layer_scale1.lambda1', 'ls2.gamma': 'layer_scale2.lambda1'}
SWIGLU = DINOV2 | {'mlp.fc1.': 'mlp.weights_in.', 'mlp.fc2.': 'mlp.weights_out.'}
DINOV3 = {
    'attn.proj.': 'attention.o_proj.',
    'norm1.': 'norm1.',
    'norm2.': 'norm2.',
    'gamma_1': 'layer_scale1.lambda1',
    'gamma_2': 'layer_scale2.lambda1',
    'mlp.fc1.': 'mlp.up_proj.',
    'mlp.fc1_g.': 'mlp.gate_proj.',
    'mlp.fc1_x.': 'mlp.up_proj.',
    'mlp.fc2.': 'mlp.down_proj.',
}
STEM = {'cls_token': 'cls_token', 'dist_token': 'distillation_token', 'pos_embed': 'position_embeddings', 'reg_token': 'register_tokens'}
LAYER = re.compile(r'(?<!qkv)(?<!\.[qkv]_proj)\.weight$')  # whose biases Hugging Face's models always have
KINDS = {  # model type -> (class, names in a block, norm, what stands before a block, before query, key and value)
    'vit': ('ViTModel', VIT, 'layernorm.', 'encoder.layer.', 'attention.attention.'),
    'deit': ('DeiTModel', VIT, 'layernorm.', 'encoder.layer.', 'attention.attention.'),
    'ijepa': ('IJepaModel', VIT, 'layernorm.', 'encoder.layer.', 'attention.attention.'),
    'beit': ('BeitModel', BEIT, 'layernorm.', 'encoder.layer.', 'attention.attention.'),
    'dinov2': ('Dinov2Model', DINOV2, 'layernorm.', 'encoder.layer.', 'attention.attention.'),
    'dinov2_with_registers': ('Dinov2WithRegistersModel', DINOV2, 'layernorm.', 'encoder.layer.', 'attention.attention.'),
    'dinov3_vit': ('DINOv3ViTModel', DINOV3, 'norm.', 'layer.', 'attention.'),
}


def write_hugging_face(out: Path, encoder, state: StateDict):
    """Write the folder, which `transformers.AutoModel.from_pretrained` and `AutoImageProcessor` read.

    Args:
        out: The folder, which is there and empty.
        encoder: A CAEViT or TimmEncoder.
        state: Its tensors under timm's names.

    Raises:
        CheckpointError: Hugging Face has no model with one of its parts.
    """
    spec = encoder.spec
    config = config_for(encoder, state)
    cls_has_position = spec.type == 'CAEViT' or not (encoder.has_cls and encoder.vit.no_embed_class) or 'pos_embed' not in state
    write_state_dict(out / 'model.safetensors', to_hugging_face(state, config, cls_has_position))
    view = spec.view or ViewSpec(size=spec.img_size)
    for name, content in (('config.json', config), ('preprocessor_config.json', preprocessor_for(view))):
        (out / name).write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
    (out / 'README.md').write_text(model_card(spec, config), encoding='utf-8')


def config_for(encoder, state: Mapping) -> dict:
    """The config.json of the model of Hugging Face's that computes the same.

    Raises:
        CheckpointError: There is none; the message names the part.
    """
    spec = encoder.spec
    if spec.type == 'TimmEncoder':
        refuse(unusual_blocks(encoder), "Hugging Face's models")
    common = dict(
        hidden_size=spec.embed_dims,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.num_heads,
        image_size=square(spec.img_size),
        patch_size=square(spec.patch_size),
        num_channels=spec.in_channels,
        hidden_act=activation_of(encoder),
        layer_norm_eps=eps_of(encoder),
        dtype='float32',
    )
    if spec.type == 'CAEViT':
        refuse({'windows': spec.window_size, 'heads that do not divide its width': spec.embed_dims % spec.num_heads}, "Hugging Face's BEiT")
        kind, own = (
            'beit',
            dict(
                intermediate_size=spec.feedforward_channels,
                use_absolute_position_embeddings=True,
                use_relative_position_bias=spec.use_rel_pos_bias,
                use_shared_relative_position_bias=False,
                use_mask_token=False,
                use_mean_pooling=not spec.final_norm,
                layer_scale_init_value=0.1 if spec.layer_scale else 0.0,
            ),
        )
    elif getattr(encoder.vit, 'rope', None) is not None:
        kind, own = 'dinov3_vit', dinov3_config(encoder, state)
    else:
        kind, own = vit_config(encoder, state)
    refuse({'no final norm of its tokens': not spec.final_norm and kind != 'beit'}, f"Hugging Face's {KINDS[kind][0]}")
    return dict(architectures=[KINDS[kind][0]], model_type=kind) | common | own


def dinov3_config(encoder, state: Mapping) -> dict:
    """What DINOv3's config has besides."""
    vit = encoder.vit
    refuse(
        {
            'a table of positions beside rotary ones': vit.pos_embed is not None,
            'rotary positions other than those of DINOv3': type(vit.rope).__name__ != 'RotaryEmbeddingDinoV3',
            'a norm inside its MLPs': any('.mlp.norm.' in key for key in state),
            'no layer scale': 'blocks.0.gamma_1' not in state,
        },
        "Hugging Face's DINOv3",
    )
    biased, gated = 'blocks.0.attn.q_bias' in state, 'blocks.0.mlp.fc1_g.weight' in state
    return dict(
        intermediate_size=encoder.spec.feedforward_channels,
        num_register_tokens=encoder.num_prefix_tokens - 1,
        rope_theta=float(vit.rope.temperature),
        query_bias=biased,
        key_bias=False,
        value_bias=biased,
        proj_bias=True,
        mlp_bias=True,
        use_gated_mlp=gated,
        layerscale_value=1.0,
        pos_embed_rescale=None,
    )


def vit_config(encoder, state: Mapping) -> tuple[str, dict]:
    """The model type of a ViT with a table of positions, and what its config has besides."""
    spec = encoder.spec
    distilled = 'dist_token' in state
    registers, packed = max(encoder.num_prefix_tokens - 1 - distilled, 0), type(encoder.blocks[0].mlp).__name__ == 'GluMlp'
    scaled = 'blocks.0.ls1.gamma' in state
    refuse(
        {
            'no cls token, but layer scale': scaled and not encoder.has_cls,
            'a distillation token beside layer scale': scaled and distilled,
            'a norm in front of its blocks': 'norm_pre.weight' in state,
            'norms of queries and keys': any('.q_norm.' in key for key in state),
            'blocks other than an attention and an MLP': 'blocks.0.attn.qkv.weight' not in state or 'blocks.0.mlp.fc1.weight' not in state,
            'registers without layer scale': registers > 0 and not scaled,
            'SwiGLU without layer scale': packed and not scaled,
            'no positions': encoder.vit.pos_embed is None,
            'positions for images that are no square': scaled and spec.grid[0] != spec.grid[1],
        },
        "Hugging Face's ViT, DINOv2",
    )
    biased = 'blocks.0.attn.qkv.bias' in state
    if not scaled:
        kind = 'deit' if distilled else 'vit' if encoder.has_cls else 'ijepa'
        return kind, dict(intermediate_size=spec.feedforward_channels, qkv_bias=biased, pooler_act='tanh')
    ratio = mlp_ratio(spec.embed_dims, spec.feedforward_channels, packed)
    own = dict(mlp_ratio=ratio, use_swiglu_ffn=packed, qkv_bias=biased, layerscale_value=1.0)
    own['apply_layernorm'] = True
    own |= dict(hidden_act='gelu') if packed else {}  # of the MLPs that are not SwiGLU
    return ('dinov2_with_registers', own | dict(num_register_tokens=registers)) if registers else ('dinov2', own)


def mlp_ratio(width: int, hidden: int, packed: bool) -> int:
    """The whole number by which Hugging Face's DINOv2 computes the width of its MLPs."""
    for ratio in range(1, 33):
        if hidden == ((int(width * ratio * 2 / 3) + 7) // 8 * 8 if packed else width * ratio):
            return ratio
    raise CheckpointError(f"Hugging Face's DINOv2 cannot express this encoder: MLPs {hidden} wide are no whole multiple of {width}")


def activation_of(encoder) -> str:
    """Hugging Face's name of the MLPs' activation."""
    mlp = encoder.blocks[0].mlp
    gated = type(mlp).__name__ in ('SwiGLU', 'GluMlp')
    act = getattr(mlp, 'act', None)
    names = {'GELU': 'gelu', 'QuickGELU': 'quick_gelu', 'SiLU': 'silu', 'ReLU': 'relu', 'GELUTanh': 'gelu_pytorch_tanh'}
    name = names.get(type(act).__name__)
    if name is None or (gated and name != 'silu'):
        raise CheckpointError(f'Hugging Face has no MLP with {type(act).__name__}, which this encoder has')
    return name


def eps_of(encoder) -> float:
    """What its norms add to the variance."""
    norm = encoder.blocks[0].norm1
    if 'LayerNorm' not in type(norm).__name__:
        raise CheckpointError(f"Hugging Face's models cannot express this encoder: its norms are {type(norm).__name__}")
    return norm.eps


def square(size: tuple[int, int]) -> int | list[int]:
    """One number for a square."""
    return size[0] if size[0] == size[1] else list(size)


def to_hugging_face(state: Mapping, config: Mapping, cls_has_position: bool = True) -> StateDict:
    """The tensors under the names of the model in a config.

    Args:
        state: Under timm's names.
        config: See :func:`config_for`.
        cls_has_position: The table of positions begins with one for cls. Hugging Face's always does, so another one gets zeros for it.
    """
    if not cls_has_position:
        table = state['pos_embed']
        state = {**state, 'pos_embed': torch.cat((table.new_zeros(1, 1, table.shape[2]), table), dim=1)}
    biases = [(key.removesuffix('weight') + 'bias', len(value)) for key, value in state.items() if LAYER.search(key)]
    state = {**{name: torch.zeros(length) for name, length in biases}, **state}  # theirs have all
    kind = config['model_type']
    _, names, norm, before, attention = KINDS[kind]
    if config.get('use_swiglu_ffn'):
        names = SWIGLU
    stem = 'embeddings.patch_embeddings.' + ('' if kind == 'dinov3_vit' else 'projection.')
    renamed = {}
    for key, value in state.items():
        if key.startswith('patch_embed.proj.'):
            renamed[key.replace('patch_embed.proj.', stem)] = value
        elif key in STEM:
            renamed[f'embeddings.{STEM[key]}'] = value
        elif key.startswith('norm.'):
            renamed[key.replace('norm.', norm, 1)] = value
        else:
            _, number, rest = key.split('.', 2)
            renamed |= {f'{before}{number}.{name}': part for name, part in in_block(rest, value, names, attention).items()}
    width = config['hidden_size']
    if kind.startswith('dinov2'):
        renamed['embeddings.mask_token'] = torch.zeros(1, width)
    elif kind == 'dinov3_vit':
        renamed['embeddings.mask_token'] = torch.zeros(1, 1, width)
        renamed.setdefault('embeddings.register_tokens', torch.zeros(1, 0, width))
    elif kind in ('vit', 'deit'):  # a pooling that its users replace; it has to be there
        renamed |= {'pooler.dense.weight': torch.eye(width), 'pooler.dense.bias': torch.zeros(width)}
    elif config.get('use_mean_pooling'):  # behind the tokens
        renamed |= {'pooler.layernorm.weight': torch.ones(width), 'pooler.layernorm.bias': torch.zeros(width)}
    return {key: value.clone().contiguous() for key, value in renamed.items()}


def in_block(rest: str, value, names: Mapping, attention: str) -> StateDict:
    """A tensor of a block under Hugging Face's names: the fused projection of queries, keys and values in three."""
    single = {'q': 'q_proj', 'k': 'k_proj', 'v': 'v_proj'} if attention == 'attention.' else {'q': 'query', 'k': 'key', 'v': 'value'}
    if rest in ('attn.qkv.weight', 'attn.qkv.bias'):
        return {f'{attention}{single[letter]}.{rest.split(".")[-1]}': part for letter, part in zip('qkv', value.chunk(3), strict=True)}
    if rest in ('attn.q_bias', 'attn.v_bias'):
        return {f'{attention}{single[rest[5]]}.bias': value}
    for ours, theirs in names.items():
        if rest.startswith(ours):
            return {theirs + rest.removeprefix(ours): value}
    raise CheckpointError(f"Hugging Face's models cannot express this encoder: they have no {rest}")


def preprocessor_for(view: ViewSpec) -> dict:
    """The preprocessor_config.json of a view."""
    mean, std = ([round(value / 255, 6) for value in values] for values in (view.mean, view.std))
    modes = {name: number for number, name in PIL_MODES.items()}
    height, width = view.size
    return dict(
        image_processor_type='BitImageProcessor',
        do_convert_rgb=len(mean) == 3,
        do_resize=True,
        size=dict(shortest_edge=round(max(view.size) / view.crop_pct)),  # what is short of the crop would become black
        resample=modes[view.interpolation],
        do_center_crop=True,
        crop_size=dict(height=height, width=width),
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=mean,
        image_std=std,
    )


def model_card(spec: EncoderSpec, config: Mapping) -> str:
    """README.md with the description of the encoder, which is also its JSON."""
    origin = spec.origin
    trained = f'trained by {origin.method}' + (f' on {origin.target}' if origin.target else '') if origin.method else 'of unknown training'
    registers = f', then come {spec.num_prefix_tokens - 1} registers' if spec.num_prefix_tokens > 1 else ''
    return f"""---
library_name: transformers
pipeline_tag: image-feature-extraction
---

# {config['architectures'][0]}, {spec.num_layers} blocks, {spec.embed_dims} wide

An encoder exported by mmcae, {trained}{f', {origin.epochs} epochs' if origin.epochs else ''}.

```python
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained('THIS_FOLDER')
model = AutoModel.from_pretrained('THIS_FOLDER')
tokens = model(**processor(images=image, return_tensors='pt')).last_hidden_state
```

The first token is that of cls{registers}; the rest are patches.

```json
{json.dumps(spec.to_dict(), indent=2)}
```
"""
