"""What the tensors of an encoder are called by the models of Hugging Face's; :mod:`.timm_names` has the way back."""

import re
from collections.abc import Mapping

import torch

from ..utils.errors import CheckpointError
from .reading import StateDict

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
TOWER = SAME | {'attn.proj.': 'self_attn.out_proj.', 'norm1.': 'layer_norm1.', 'norm2.': 'layer_norm2.'}
# And outside of the blocks.
TOKENS = {
    'cls_token': 'embeddings.cls_token',
    'dist_token': 'embeddings.distillation_token',
    'pos_embed': 'embeddings.position_embeddings',
    'reg_token': 'embeddings.register_tokens',
    'patch_embed.proj.': 'embeddings.patch_embeddings.projection.',
    'norm.': 'layernorm.',
}
DINOV3_TOKENS = TOKENS | {'patch_embed.proj.': 'embeddings.patch_embeddings.', 'norm.': 'norm.'}
TOWER_TOKENS = {
    'cls_token': 'embeddings.class_embedding',
    'pos_embed': 'embeddings.position_embedding.weight',
    'patch_embed.proj.': 'embeddings.patch_embedding.',
    'norm_pre.': 'pre_layrnorm.',
    'norm.': 'post_layernorm.',
}
LAYER = re.compile(r'(?<!qkv)(?<!\.[qkv]_proj)\.weight$')  # whose biases Hugging Face's models always have
KINDS = {  # model type -> (class, names outside of the blocks, names in a block, what stands before a block, before query, key and value)
    'vit': ('ViTModel', TOKENS, VIT, 'encoder.layer.', 'attention.attention.'),
    'deit': ('DeiTModel', TOKENS, VIT, 'encoder.layer.', 'attention.attention.'),
    'ijepa': ('IJepaModel', TOKENS, VIT, 'encoder.layer.', 'attention.attention.'),
    'beit': ('BeitModel', TOKENS, BEIT, 'encoder.layer.', 'attention.attention.'),
    'dinov2': ('Dinov2Model', TOKENS, DINOV2, 'encoder.layer.', 'attention.attention.'),
    'dinov2_with_registers': ('Dinov2WithRegistersModel', TOKENS, DINOV2, 'encoder.layer.', 'attention.attention.'),
    'dinov3_vit': ('DINOv3ViTModel', DINOV3_TOKENS, DINOV3, 'layer.', 'attention.'),
    'clip_vision_model': ('CLIPVisionModel', TOWER_TOKENS, TOWER, 'encoder.layers.', 'self_attn.'),
    'siglip_vision_model': ('SiglipVisionModel', TOWER_TOKENS, TOWER, 'encoder.layers.', 'self_attn.'),
}
TOWER_PREFIX = 'vision_model.'  # of CLIP's and SigLIP's: version 4 of transformers asks for it, version 5 takes it off


def to_hugging_face(state: Mapping, config: Mapping, cls_has_position: bool = True) -> StateDict:
    """The tensors under the names of the model in a config.

    Args:
        state: Under timm's names.
        config: See :func:`.hugging_face_models.config_for`.
        cls_has_position: The table of positions begins with one for cls. Hugging Face's always does, so another one gets zeros for it.
    """
    if not cls_has_position:
        table = state['pos_embed']
        state = {**state, 'pos_embed': torch.cat((table.new_zeros(1, 1, table.shape[2]), table), dim=1)}
    biases = [(key.removesuffix('weight') + 'bias', len(value)) for key, value in state.items() if LAYER.search(key)]
    state = {**{name: torch.zeros(length) for name, length in biases}, **state}  # theirs have all
    kind = config['model_type']
    tower = KINDS[kind][1] is TOWER_TOKENS
    if tower:
        state = with_shapes_of_towers(state)
    _, names, in_blocks, before, attention = KINDS[kind]
    if config.get('use_swiglu_ffn'):
        in_blocks = SWIGLU
    renamed = {}
    for key, value in state.items():
        if key.startswith('blocks.'):
            _, number, rest = key.split('.', 2)
            renamed |= {f'{before}{number}.{name}': part for name, part in in_block(rest, value, in_blocks, attention).items()}
        else:
            renamed[rename(key, names)] = value
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
    return {(TOWER_PREFIX if tower else '') + key: value.clone().contiguous() for key, value in renamed.items()}


def with_shapes_of_towers(state: Mapping) -> StateDict:
    """cls and positions without a dimension for the batch, biases of queries, keys and values, and none of CLIP's patches."""
    state = dict(state)
    for key in [key for key in state if key.endswith('attn.qkv.weight')]:
        state.setdefault(key.replace('weight', 'bias'), torch.zeros(len(state[key])))
    if 'cls_token' in state:
        state |= dict(cls_token=state['cls_token'].flatten())
        del state['patch_embed.proj.bias']
    return state | dict(pos_embed=state['pos_embed'][0])


def in_block(rest: str, value, names: Mapping, attention: str) -> StateDict:
    """A tensor of a block under Hugging Face's names: the fused projection of queries, keys and values in three."""
    single = (
        {'q': 'q_proj', 'k': 'k_proj', 'v': 'v_proj'}
        if attention in ('attention.', 'self_attn.')
        else {'q': 'query', 'k': 'key', 'v': 'value'}
    )
    if rest in ('attn.qkv.weight', 'attn.qkv.bias'):
        return {f'{attention}{single[letter]}.{rest.split(".")[-1]}': part for letter, part in zip('qkv', value.chunk(3), strict=True)}
    if rest in ('attn.q_bias', 'attn.v_bias'):
        return {f'{attention}{single[rest[5]]}.bias': value}
    return {rename(rest, names): value}


def rename(key: str, names: Mapping) -> str:
    """A name that begins with one of timm's under that of Hugging Face's.

    Raises:
        CheckpointError: There is none.
    """
    for ours, theirs in names.items():
        if key.startswith(ours):
            return theirs + key.removeprefix(ours)
    raise CheckpointError(f"Hugging Face's models cannot express this encoder: they have no {key}")
