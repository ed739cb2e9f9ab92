"""What the tensors of CAE are called in each layout, and the way from each layout to mmcae's."""

import re
from collections.abc import Iterable, Mapping

from ..utils.errors import CheckpointError, argument
from .reading import StateDict
from .tables import bias_grid
from .timm_names import to_timm_names

# (theirs, ours), matched at the start of a key, first match wins. {n} stands for a number, {x} for one of q, k, v.
OFFICIAL = (
    ('encoder.', 'backbone.'),
    ('encoder_to_regresser.', 'regressor.project.0.'),
    ('encoder_to_regresser_norm.', 'regressor.project.1.'),
    ('mask_token', 'regressor.mask_token'),
    ('rd_pos_embed', 'pos_embed'),
    ('regresser.regressor_blocks.{n}.norm1_{x}.', 'regressor.blocks.{n}.norm_{x}.'),
    ('regresser.regressor_blocks.{n}.norm2_cross.', 'regressor.blocks.{n}.norm2.'),
    ('regresser.regressor_blocks.{n}.cross_attn.', 'regressor.blocks.{n}.attn.'),
    ('regresser.regressor_blocks.{n}.mlp_cross.', 'regressor.blocks.{n}.mlp.'),
    ('regresser.regressor_blocks.{n}.gamma_1_cross', 'regressor.blocks.{n}.gamma_1'),
    ('regresser.regressor_blocks.{n}.gamma_2_cross', 'regressor.blocks.{n}.gamma_2'),
    ('regresser.norm.', 'regressor.norm.'),
    ('decoder.decoder_blocks.', 'decoder.blocks.'),
    ('decoder.norm.', 'decoder.norm.'),
    ('decoder.head.', 'decoder.head.'),
)
# In CAE v2 the authors call the head that all tokens share a decoder; the regressor's norm is there, and never used.
OFFICIAL_V2 = (
    ('decoder.norm.', 'predictor.norm.'),
    ('decoder.head.', 'predictor.fc.'),
    *(pair for pair in OFFICIAL if not pair[0].startswith(('decoder.', 'regresser.norm.'))),
)
UNUSED_V2 = 'regresser.norm.'


def _mmpretrain_blocks(theirs: str, ours: str) -> tuple:
    return (
        (f'{theirs}.{{n}}.ln1.', f'{ours}.{{n}}.norm1.'),
        (f'{theirs}.{{n}}.ln2.', f'{ours}.{{n}}.norm2.'),
        (f'{theirs}.{{n}}.ffn.layers.0.0.', f'{ours}.{{n}}.mlp.fc1.'),
        (f'{theirs}.{{n}}.ffn.layers.1.', f'{ours}.{{n}}.mlp.fc2.'),
        (f'{theirs}.{{n}}.', f'{ours}.{{n}}.'),
    )


MMPRETRAIN = (
    *_mmpretrain_blocks('backbone.layers', 'backbone.blocks'),
    ('backbone.patch_embed.projection.', 'backbone.patch_embed.proj.'),
    ('backbone.ln1.', 'backbone.norm.'),
    ('backbone.ln2.', 'backbone.norm.'),
    ('backbone.', 'backbone.'),
    ('neck.mask_token', 'regressor.mask_token'),
    ('neck.regressors.{n}.norm1_{x}_cross.', 'regressor.blocks.{n}.norm_{x}.'),
    ('neck.regressors.{n}.norm2_cross.', 'regressor.blocks.{n}.norm2.'),
    ('neck.regressors.{n}.cross_attn.', 'regressor.blocks.{n}.attn.'),
    ('neck.regressors.{n}.ffn.layers.0.0.', 'regressor.blocks.{n}.mlp.fc1.'),
    ('neck.regressors.{n}.ffn.layers.1.', 'regressor.blocks.{n}.mlp.fc2.'),
    ('neck.regressors.{n}.gamma_1_cross', 'regressor.blocks.{n}.gamma_1'),
    ('neck.regressors.{n}.gamma_2_cross', 'regressor.blocks.{n}.gamma_2'),
    ('neck.norm_regressor.', 'regressor.norm.'),
    *_mmpretrain_blocks('neck.decoders', 'decoder.blocks'),
    ('neck.norm_decoder.', 'decoder.norm.'),
    ('neck.head.', 'decoder.head.'),
)
# The layer scale of its plain ViTs; that of CAE has our name.
MMPRETRAIN_SCALE = (
    ('backbone.layers.{n}.attn.gamma1.weight', 'backbone.blocks.{n}.gamma_1'),
    ('backbone.layers.{n}.ffn.gamma2.weight', 'backbone.blocks.{n}.gamma_2'),
)
# What models of mmpretrain have and CAE's encoder has not, by tensors.
NOT_CAES = {
    'a distillation token': ('backbone.dist_token',),
    'a norm in front of its blocks': ('backbone.pre_norm.weight',),
    'gated MLPs': ('backbone.layers.0.ffn.w12.weight', 'backbone.layers.0.mlp.w1.weight', 'backbone.layers.0.mlp.w12.weight'),
}
# What other layouts carry and ours does not need: copies of the encoder, the frozen tokenizer, recomputed buffers, counters of averages.
REDUNDANT = re.compile(r'(alignment_encoder|teacher|target_generator|data_preprocessor)\.|.*\brelative_position_index$|steps$|n_averaged$')
TOKENIZER = 'target_generator.'
SHARED_BIAS = 'rel_pos_bias.relative_position_bias_table'
LAYER_SCALE = re.compile(r'\.ls([12])\.gamma$')  # timm's ViT and DINOv2
CAE_PARTS = ('backbone.', 'regressor.', 'decoder.', 'predictor.', 'pos_embed')
ENCODER_PARTS = ('cls_token', 'pos_embed', 'patch_embed.', 'blocks.', 'norm.', 'fc_norm.')


# What the names of CAE's own parts begin with, by kind; the rest are copies, tokenizers, and heads of other tasks.
PARTS = {
    'mmcae': CAE_PARTS,
    'official': ('encoder.', 'encoder_to_regresser', 'regresser.', 'decoder.', 'mask_token', 'rd_pos_embed'),
    'mmpretrain': ('backbone.', 'neck.'),
    'encoder': ENCODER_PARTS,
    'huggingface': (
        'embeddings.',
        'encoder.',
        'layer.',
        'layers.',
        'model.',
        'shared_position_bias.',
        'layernorm.',
        'norm.',
        'pre_layrnorm.',
        'post_layernorm.',
    ),
    'mmpretrain-encoder': ('cls_token', 'dist_token', 'pos_embed', 'patch_embed.', 'pre_norm.', 'rel_pos_bias.', 'layers.', 'ln1.', 'ln2.'),
}


def convert_official(state: Mapping) -> StateDict:
    """The authors' pretraining state dict under mmcae's names. The alignment encoder is left out: it equals the encoder; and so is the
    norm that CAE v2 does not use.
    """
    if is_official_v2(state):
        state = {key: value for key, value in state.items() if not key.startswith(UNUSED_V2)}
        return _with_latent_positions(rename(state, OFFICIAL_V2))
    return _with_latent_positions(rename(state, OFFICIAL))


def is_official_v2(state: Mapping) -> bool:
    """Whether a state dict of the authors is of CAE v2: it has a regressor, and neither decoder blocks nor an alignment encoder."""
    absent = ('decoder.decoder_blocks.', 'alignment_encoder.', 'teacher.cls_token')  # older copies of CAE's encoder, not v2's teacher
    return 'decoder.head.weight' in state and not any(key.startswith(absent) for key in state)


def is_v2(state: Mapping) -> bool:
    """Whether a state dict under mmcae's names is of CAE v2, which has one head for all tokens in the place of a decoder."""
    return any(key.startswith('predictor.fc.') for key in state)


def convert_mmpretrain(state: Mapping) -> StateDict:
    """A state dict of mmpretrain's CAE, or of any of its models on BEiTViT, under mmcae's names; tokenizer and teacher left out."""
    parts = _parts(state, 'mmpretrain')
    own = {key: value for key, value in state.items() if key.startswith(parts)}
    if found := [part for part, names in NOT_CAES.items() if any(name in own for name in names)]:
        raise CheckpointError(
            f'The ViT of mmpretrain has {" and ".join(found)}, which is not read from its layout: take the file of the model that timm, '
            'Meta or Hugging Face has'
        )
    state = rename(own, (*MMPRETRAIN_SCALE, *MMPRETRAIN))
    encoder = _with_positions(_with_own_biases(encoder_of(state)))
    state = {key: value for key, value in state.items() if not key.startswith('backbone.')}
    return _with_latent_positions({**{f'backbone.{key}': value for key, value in encoder.items()}, **state})


def convert_timm(state: Mapping) -> StateDict:
    """timm's ViT or BEiT state dict as an mmcae state dict with an encoder alone (the prefix `backbone.`); its classifier left out."""
    state = {LAYER_SCALE.sub(r'.gamma_\1', key): value for key, value in without_redundant(state).items()}
    state = _with_positions({key.replace('fc_norm.', 'norm.', 1): value for key, value in _with_own_biases(state).items()})
    return {f'backbone.{key}': value for key, value in state.items() if key.startswith(ENCODER_PARTS)}


def to_mmcae(state: Mapping, kind: str, norm: str | None = None) -> StateDict:
    """A state dict under mmcae's names.

    Args:
        state: State dict of any layout; keys that belong to none of mmcae's parts stay.
        kind: The layout, see :mod:`mmcae.checkpoints`.
        norm: Which norm is the encoder's, where the state dict has two: that of the tokens ('norm', 'ln1'), or that of their mean in a
            fine-tuned classifier ('fc_norm', 'ln2').

    Raises:
        CheckpointError: An unknown key; or two norms, and `norm` does not choose.
    """
    if kind == 'huggingface':
        state = to_timm_names(state)
    state = one_norm(_split_qkv_bias(state), norm)
    if kind == 'official':
        return convert_official(state)
    if kind == 'mmpretrain':
        return convert_mmpretrain(state)
    if kind == 'mmpretrain-encoder':
        return convert_mmpretrain({f'backbone.{key}': value for key, value in state.items() if key.startswith(PARTS[kind])})
    if kind in ('encoder', 'huggingface'):
        return convert_timm(state)
    return without_redundant(state)


def left_out(state: Mapping, kind: str) -> list[str]:
    """The keys of a state dict that are no part of CAE: copies of the encoder, tokenizers, heads and necks of other tasks."""
    unused = UNUSED_V2 if kind == 'official' and is_official_v2(state) else ' '
    return [key for key in state if REDUNDANT.match(key) or not key.startswith(_parts(state, kind)) or key.startswith(unused)]


def cae_of(state: Mapping) -> StateDict:
    """The parts of CAE or CAE v2 out of a state dict under mmcae's names: what is left without heads and necks of other tasks."""
    return {key: value for key, value in without_redundant(state).items() if key.startswith(CAE_PARTS)}


def tokenizer_of(state: Mapping) -> StateDict:
    """The frozen tokenizer inside a pretraining checkpoint of mmpretrain, without prefix."""
    return {key.removeprefix(TOKENIZER): value for key, value in state.items() if key.startswith(TOKENIZER)}


def encoder_of(state: Mapping) -> StateDict:
    """The encoder alone out of a state dict under mmcae's names, without prefix."""
    return {key.removeprefix('backbone.'): value for key, value in without_redundant(state).items() if key.startswith('backbone.')}


def _parts(state: Mapping, kind: str) -> tuple[str, ...]:
    if kind == 'mmpretrain' and not any(key.startswith('neck.regressors.') for key in state):
        return ('backbone.',)  # a model other than CAE: what its neck does is its own affair
    return PARTS[kind]


def one_norm(state: Mapping, norm: str | None) -> StateDict:
    """Of the norm of the tokens and the norm of their mean, where both are there, the one that is asked for."""
    state = dict(state)
    for prefix, first, second in (('', 'norm', 'fc_norm'), ('', 'ln1', 'ln2'), ('backbone.', 'ln1', 'ln2')):
        both = {name: [key for key in state if key.startswith(f'{prefix}{name}.')] for name in (first, second)}
        if not all(both.values()):
            continue
        if norm not in both:
            raise CheckpointError(
                f'The checkpoint has two final norms, {first!r} of all tokens and {second!r} of their mean, and an encoder has one: '
                f'give {argument("norm", first)}, or {second!r}'
            )
        for key in both[second if norm == first else first]:
            del state[key]
    return state


def _with_own_biases(state: Mapping) -> StateDict:
    """BEiT's relative position biases that all blocks share, given to each block, as its fine-tuning does."""
    shared = state.get(SHARED_BIAS)
    if shared is None:
        return dict(state)
    blocks = {key.split('.')[1] for key in state if key.startswith('blocks.')}
    own = {f'blocks.{block}.attn.relative_position_bias_table': shared for block in blocks}
    return {**{key: value for key, value in state.items() if key != SHARED_BIAS}, **own}


def _with_positions(state: Mapping) -> StateDict:
    """BEiT without absolute positions: a table of zeros for the grid that its biases were made for, which CAE's encoder has."""
    table = state.get('blocks.0.attn.relative_position_bias_table')
    grid = None if table is None or 'pos_embed' in state or 'cls_token' not in state else bias_grid(table, (0, 0))
    if grid is None:
        return dict(state)
    return {**state, 'pos_embed': table.new_zeros(1, 1 + grid[0] * grid[1], state['cls_token'].shape[-1])}


def _split_qkv_bias(state: Mapping) -> StateDict:
    """The fused bias of plain ViTs as the biases of queries and values. That of the keys is left out: it changes all scores of a query by
    the same amount, which the softmax does not see.
    """
    split = {}
    for key, value in state.items():
        if key.endswith('.attn.qkv.bias'):
            block = key.removesuffix('qkv.bias')
            split[f'{block}q_bias'], _, split[f'{block}v_bias'] = value.chunk(3)
        else:
            split[key] = value
    return split


def without_redundant(state: Mapping) -> StateDict:
    """What is left without copies, frozen tokenizers and recomputed buffers."""
    return {key: value for key, value in state.items() if not REDUNDANT.match(key)}


def rename(state: Mapping, table: Iterable[tuple[str, str]]) -> StateDict:
    """A state dict under other names, by pairs of what they begin with; every name has to be known."""
    rules = [(re.compile(re.escape(old).replace(r'\{n\}', r'(\d+)').replace(r'\{x\}', '([qkv])')), new) for old, new in table]
    renamed = {}
    for key, value in without_redundant(state).items():
        for pattern, new in rules:
            match = pattern.match(key)
            if match:
                values = iter(match.groups())
                name = re.sub(r'\{.\}', lambda _: next(values), new) + key[match.end() :]  # noqa: B023
                if name in renamed:
                    raise CheckpointError(f'Two tensors of the checkpoint would become {name!r}, one of them {key!r}: which is meant?')
                renamed[name] = value
                break
        else:
            raise CheckpointError(f'The key {key!r} belongs to no known part of CAE: is this really such a checkpoint?')
    return renamed


def _with_latent_positions(state: StateDict) -> StateDict:
    """Bring the regressor's position table into our form: without a row for cls, and present wherever there is a regressor."""
    if 'pos_embed' in state:
        state['pos_embed'] = state['pos_embed'][:, 1:]
    elif 'regressor.mask_token' in state and 'backbone.pos_embed' in state:
        state['pos_embed'] = state['backbone.pos_embed'][:, 1:]
    return state
