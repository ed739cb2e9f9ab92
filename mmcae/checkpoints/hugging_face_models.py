"""Which model of Hugging Face's computes the same as an encoder, by its config.json."""

from collections.abc import Mapping

from ..utils.errors import CheckpointError
from .exporting import refuse, unusual_blocks
from .hugging_face_names import KINDS
from .timm_names import is_packed


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
    elif 'norm_pre.weight' in state:
        kind, own = 'clip_vision_model', tower_config(encoder, state)
    elif is_siglip(encoder):
        kind, own = 'siglip_vision_model', tower_config(encoder, state) | dict(vision_use_head=False)
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


def is_siglip(encoder) -> bool:
    """Whether it is one of SigLIP's that is expressed as such. I-JEPA's class computes the same, and takes images that are no square."""
    spec = encoder.spec
    plain = spec.num_prefix_tokens == 0 and not spec.layer_scale
    return 'siglip' in encoder.model_name and plain and spec.grid[0] == spec.grid[1] and spec.patch_size[0] == spec.patch_size[1]


def unusual_layers(state: Mapping) -> dict[str, bool]:
    """What neither a ViT nor CLIP has, for :func:`.exporting.refuse`."""
    return {
        'norms of queries and keys': any('.q_norm.' in key for key in state),
        'blocks other than an attention and an MLP': 'blocks.0.attn.qkv.weight' not in state or 'blocks.0.mlp.fc1.weight' not in state,
    }


def tower_config(encoder, state: Mapping) -> dict:
    """What the config of an image tower of CLIP or SigLIP has besides."""
    spec, clip = encoder.spec, 'norm_pre.weight' in state
    refuse(
        {
            **unusual_layers(state),
            'layer scale': spec.layer_scale,
            'gated MLPs': is_packed(state),
            f'{spec.num_prefix_tokens} tokens in front of the patches': spec.num_prefix_tokens != int(clip),
            'no positions': encoder.vit.pos_embed is None,
            'positions for images that are no square': spec.grid[0] != spec.grid[1],
            'patches that are no square': spec.patch_size[0] != spec.patch_size[1],
        },
        f"Hugging Face's {'CLIP' if clip else 'SigLIP'}",
    )
    return dict(intermediate_size=spec.feedforward_channels)


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
            **unusual_layers(state),
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
    mlp = getattr(encoder.blocks[0], 'mlp', None)
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
