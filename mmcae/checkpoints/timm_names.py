"""What the tensors of plain ViTs are called by timm, Meta (DINOv2, DINOv3) and Hugging Face, and the way from each layout to timm's."""

import re
from collections.abc import Mapping

import torch

from ..utils.errors import CheckpointError
from .reading import StateDict

VIT = 'vit.'  # the part of TimmEncoder that is timm's model
# What stands behind the tokens of an encoder, and what only a pretraining of theirs uses.
HEADS = ('head.', 'head_dist.', 'attn_pool.', 'pre_logits.', 'classifier.', 'pooler.', 'local_cls_norm.', 'mask_token')
HEADS += ('embeddings.mask_token', 'decoder', 'dino_head.', 'ibot_head.', 'projector', 'predictor', 'prototypes')
# Recomputed: tables of rotary positions, the numbers of CLIP's positions, and the mask of Meta's fused bias.
BUFFERS = re.compile(r'(rope_embed\.periods|embeddings\.position_ids|.*\.qkv\.bias_mask|rope\.(?!freqs).*|.*rope_embeddings\..*)$')
CHUNK = re.compile(r'^blocks\.\d+\.(\d+)\.')  # DINOv2's training keeps its blocks in chunks

DINOV3 = (
    ('storage_tokens', 'reg_token'),
    ('.ls1.gamma', '.gamma_1'),
    ('.ls2.gamma', '.gamma_2'),
    ('.mlp.w1.', '.mlp.fc1_g.'),
    ('.mlp.w2.', '.mlp.fc1_x.'),
)
HUGGING_FACE = (
    ('embeddings.cls_token', 'cls_token'),
    ('embeddings.distillation_token', 'dist_token'),
    ('embeddings.position_embeddings', 'pos_embed'),
    ('embeddings.register_tokens', 'reg_token'),
    ('embeddings.patch_embeddings.projection.', 'patch_embed.proj.'),
    ('embeddings.patch_embeddings.', 'patch_embed.proj.'),
    ('embeddings.class_embedding', 'cls_token'),
    ('embeddings.position_embedding.weight', 'pos_embed'),
    ('embeddings.patch_embedding.', 'patch_embed.proj.'),
    ('pre_layrnorm.', 'norm_pre.'),
    ('post_layernorm.', 'norm.'),
    ('layernorm.', 'norm.'),
    ('norm.', 'norm.'),
    ('encoder.relative_position_bias.relative_position_bias_table', 'rel_pos_bias.relative_position_bias_table'),
    ('shared_position_bias.relative_position_bias_table', 'rel_pos_bias.relative_position_bias_table'),
)
HUGGING_FACE_BLOCK = (
    ('attention.attention.relative_position_bias.relative_position_bias_table', 'attn.relative_position_bias_table'),
    ('relative_position_bias.relative_position_bias_table', 'attn.relative_position_bias_table'),
    ('attention.output.dense.', 'attn.proj.'),
    ('attention.o_proj.', 'attn.proj.'),
    ('self_attn.out_proj.', 'attn.proj.'),
    ('layer_norm1.', 'norm1.'),
    ('layer_norm2.', 'norm2.'),
    ('layernorm_before.', 'norm1.'),
    ('layernorm_after.', 'norm2.'),
    ('norm1.', 'norm1.'),
    ('norm2.', 'norm2.'),
    ('intermediate.dense.', 'mlp.fc1.'),
    ('output.dense.', 'mlp.fc2.'),
    ('mlp.fc1.', 'mlp.fc1.'),
    ('mlp.fc2.', 'mlp.fc2.'),
    ('mlp.weights_in.', 'mlp.fc1.'),
    ('mlp.weights_out.', 'mlp.fc2.'),
    ('mlp.gate_proj.', 'mlp.fc1_g.'),
    ('mlp.down_proj.', 'mlp.fc2.'),
    ('lambda_1', 'gamma_1'),
    ('lambda_2', 'gamma_2'),
)
# In the files that transformers writes, and in the state dicts of its models since version 5.
HUGGING_FACE_LAYER = re.compile(r'^(?:(?:encoder|model)\.)?layers?\.(\d+)\.')
QUERY_KEY_VALUE = re.compile(r'(?:attention|self_attn)\.(?:attention\.)?(query|key|value|q_proj|k_proj|v_proj)\.(weight|bias)$')


def layout_of(state: Mapping) -> str:
    """Whose names the tensors of a plain ViT have: 'timm', 'dinov2' or 'dinov3' (Meta's), or 'huggingface'."""
    if any(key.startswith('embeddings.patch_embedding') for key in state):
        return 'huggingface'
    if is_dinov3(state):
        return 'dinov3'
    masked = state.get('mask_token')  # MAE's, of its decoder, has three dimensions
    if masked is not None and masked.ndim == 2 and 'blocks.0.attn.q_bias' not in state or any(CHUNK.match(key) for key in state):
        return 'dinov2'
    return 'timm'


def is_dinov3(state: Mapping) -> bool:
    """Whether an encoder is DINOv3's, under Meta's or Hugging Face's names: under timm's it differs from CAE's by its positions alone."""
    own = ('storage_tokens', 'rope_embed.periods', 'embeddings.patch_embeddings.weight')
    return any(key in state for key in own) or any(key.endswith('.qkv.bias_mask') for key in state)


def to_timm_names(state: Mapping) -> StateDict:
    """The tokens' part of a plain ViT under timm's names, classifiers and pooling left out.

    Args:
        state: Of any of the layouts of :func:`layout_of`.

    Raises:
        CheckpointError: A key of Hugging Face's layout that is not known.
    """
    layout = layout_of(state)
    # A model without registers can have an empty tensor of them.
    state = {key: value for key, value in state.items() if not key.startswith(HEADS) and not BUFFERS.match(key) and value.numel()}
    if layout == 'huggingface':
        return from_hugging_face(state)
    if layout == 'timm':
        return state
    state = {CHUNK.sub(r'blocks.\1.', key): value for key, value in state.items()}
    return from_dinov3(state) if layout == 'dinov3' else from_dinov2(state)


def from_dinov2(state: Mapping) -> StateDict:
    """Meta's DINOv2: SwiGLU has other names; with registers timm keeps the position of cls in the cls token."""
    renamed = {key.replace('.mlp.w12.', '.mlp.fc1.').replace('.mlp.w3.', '.mlp.fc2.'): value for key, value in state.items()}
    return registers_behind_positions(renamed, 'register_tokens')


def from_dinov3(state: Mapping) -> StateDict:
    """Meta's DINOv3: layer scale and registers have other names, and the bias of the keys is masked out."""
    renamed = {}
    for key, value in state.items():
        if key.endswith('.qkv.bias'):
            query, _, value_bias = value.chunk(3)
            block = key.removesuffix('qkv.bias')
            renamed |= {f'{block}q_bias': query, f'{block}v_bias': value_bias}
            continue
        for theirs, ours in (*DINOV3, ('.mlp.w3.', '.mlp.fc2.')):
            key = key.replace(theirs, ours)
        renamed[key] = value
    return without_zero_biases(renamed)


def without_zero_biases(state: StateDict) -> StateDict:
    """DINOv3's distilled models have learnt zero biases of queries and values, and timm's models for them have none."""
    biases = [key for key in state if key.endswith(('.q_bias', '.v_bias'))]
    if any(bool(state[key].any()) for key in biases):
        return state
    return {key: value for key, value in state.items() if key not in set(biases)}


def registers_behind_positions(state: StateDict, name: str) -> StateDict:
    """DINOv2 with registers: positions are added to cls and patches before the registers come in; timm adds none to either."""
    if name not in state:
        return state
    state = dict(state)
    table = state.pop('pos_embed')
    return {
        **state_without(state, name, 'cls_token'),
        'reg_token': state[name],
        'cls_token': state['cls_token'].float() + table[:, :1].float(),  # half precision would round the sum
        'pos_embed': table[:, 1:],
    }


def state_without(state: Mapping, *names: str) -> StateDict:
    """A state dict without some tensors."""
    return {key: value for key, value in state.items() if key not in names}


def from_hugging_face(state: Mapping) -> StateDict:
    """Hugging Face's ViT, DINOv2, DINOv3, CLIP and SigLIP under timm's names; their BEiT under timm's BEiT's, which are CAE's too."""
    gated = any('.mlp.gate_proj.' in key for key in state)
    dinov3 = is_dinov3(state)
    kernel = state.get('embeddings.patch_embedding.weight')
    if kernel is not None and kernel.ndim != 4:
        raise CheckpointError(
            'This is SigLIP 2 for images of any shape (NaFlex), which timm has as no plain ViT: take one of a fixed resolution'
        )
    renamed, parts = {}, {}
    for key, value in state.items():
        layer = HUGGING_FACE_LAYER.match(key)
        block, rest = (f'blocks.{layer[1]}.', key[layer.end() :]) if layer else ('', key)
        found = QUERY_KEY_VALUE.match(rest)
        if found:
            parts[block, found[2], found[1][0]] = value
            continue
        scale = re.match(r'layer_scale([12])\.lambda1$', rest)
        if scale:
            renamed[f'{block}gamma_{scale[1]}' if dinov3 else f'{block}ls{scale[1]}.gamma'] = value
            continue
        table = HUGGING_FACE_BLOCK if layer else HUGGING_FACE
        table = (*table, ('mlp.up_proj.', 'mlp.fc1_x.' if gated else 'mlp.fc1.'))
        ours = next((ours + rest.removeprefix(theirs) for theirs, ours in table if rest.startswith(theirs)), None)
        if ours is None:
            raise CheckpointError(
                f"The key {key!r} belongs to no part of Hugging Face's ViT, DINOv2, DINOv3, CLIP, SigLIP or BEiT that is known here"
            )
        renamed[block + ours] = value
    for name in ('cls_token', 'pos_embed'):  # CLIP's have no dimension for the batch
        if name in renamed:
            renamed[name] = renamed[name].reshape(1, -1, renamed[name].shape[-1])
    for block in {block for block, _, _ in parts}:
        weights = [parts[block, 'weight', letter] for letter in 'qkv']
        biases = {letter: parts.get((block, 'bias', letter)) for letter in 'qkv'}
        renamed[f'{block}attn.qkv.weight'] = torch.cat(weights)
        if dinov3 and biases['k'] is not None and biases['k'].any():
            raise CheckpointError(f"The keys' projection of {block.rstrip('.')} has a bias, which DINOv3's has not: timm has no such model")
        if all(bias is None for bias in biases.values()):
            continue
        fused = biases['k'] is not None and not dinov3
        query, key, value = (weights[0].new_zeros(len(weights[0])) if bias is None else bias for bias in biases.values())
        if fused:
            renamed[f'{block}attn.qkv.bias'] = torch.cat((query, key, value))
        else:
            renamed |= {f'{block}attn.q_bias': query, f'{block}attn.v_bias': value}
    if dinov3:
        return without_zero_biases(with_all_biases(renamed))
    if gated:  # DINOv2's SwiGLU, whose gate and value timm has in one layer
        for key in [key for key in renamed if '.mlp.fc1_g.' in key]:
            renamed[key.replace('fc1_g', 'fc1')] = torch.cat((renamed.pop(key), renamed.pop(key.replace('fc1_g', 'fc1_x'))))
    return registers_behind_positions(renamed, 'reg_token')


def with_all_biases(state: Mapping) -> StateDict:
    """DINOv3 of Hugging Face's, whose config can leave out biases: timm's always has those of the projection and the MLP."""
    layers = [key.removesuffix('weight') for key in state if re.search(r'\.(attn\.proj|mlp\.fc\w+)\.weight$', key)]
    return {**{f'{layer}bias': state[f'{layer}weight'].new_zeros(len(state[f'{layer}weight'])) for layer in layers}, **state}


def is_packed(state: Mapping) -> bool:
    """Whether the MLPs are SwiGLUs whose gate and value are one layer."""
    first, second = state.get('blocks.0.mlp.fc1.weight'), state.get('blocks.0.mlp.fc2.weight')
    return first is not None and second is not None and len(first) == 2 * second.shape[1]


def beyond_cae(state: Mapping) -> list[str]:
    """What an encoder under timm's names has, or has not, that keeps CAEViT from computing the same."""
    parts = {
        'registers': 'reg_token' in state,
        'no cls token': 'cls_token' not in state,
        'gated MLPs': is_packed(state) or 'blocks.0.mlp.fc1_g.weight' in state,
        'a norm in front of its blocks': 'norm_pre.weight' in state,
        'norms of queries and keys': 'blocks.0.attn.q_norm.weight' in state,
        'rotary positions': 'rope.freqs' in state or 'pos_embed' not in state and 'blocks.0.attn.relative_position_bias_table' not in state,
        'other attentions': 'blocks.0.attn.qkv.weight' not in state,
    }
    return [name for name, present in parts.items() if present]


# ---------------------------------------------------------------- and back


def to_dinov2(state: Mapping) -> StateDict:
    """timm's names under those of Meta's DINOv2. With registers, the position of cls stays in the cls token, and is zero in the table."""
    state = dict(state)
    width = state['cls_token'].shape[-1]
    if is_packed(state):
        state = {key.replace('.mlp.fc1.', '.mlp.w12.').replace('.mlp.fc2.', '.mlp.w3.'): value for key, value in state.items()}
    if 'reg_token' in state:
        state['register_tokens'] = state.pop('reg_token')
        state['pos_embed'] = torch.cat((torch.zeros(1, 1, width), state['pos_embed']), dim=1)
    return {**state, 'mask_token': torch.zeros(1, width)}


def to_dinov3(state: Mapping) -> StateDict:
    """timm's names under those of Meta's DINOv3, with the mask that hides the bias of the keys; biases that timm leaves out are zero."""
    width = state['cls_token'].shape[-1]
    renamed = {'mask_token': torch.zeros(1, width)}
    gated = 'blocks.0.mlp.fc1_g.weight' in state
    for key, value in state.items():
        if key.endswith(('.q_bias', '.v_bias')):
            continue
        for theirs, ours in DINOV3:
            key = key.replace(ours, theirs)
        renamed[key.replace('.mlp.fc2.', '.mlp.w3.') if gated else key] = value
        if key.endswith('.attn.qkv.weight'):
            block, inner = key.removesuffix('qkv.weight'), len(value) // 3
            query, own = (state.get(f'{block}{letter}_bias', torch.zeros(inner)) for letter in 'qv')
            renamed[f'{block}qkv.bias'] = torch.cat((query, torch.zeros(inner), own))
            renamed[f'{block}qkv.bias_mask'] = torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(inner)
    return renamed
