"""What the tensors of CAE are called in each layout, and the way from one layout to another."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from ..utils.errors import CheckpointError
from .reading import StateDict

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
# The authors' downstream code recognises a pretraining checkpoint by its last key, which must be the decoder's.
OFFICIAL_ORDER = ('rd_pos_embed', 'mask_token', 'encoder.', 'alignment_encoder.', 'encoder_to_regresser', 'regresser.', 'decoder.')


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
# What other layouts carry and ours does not need: copies of the encoder, the frozen tokenizer, recomputed buffers, counters of averages.
REDUNDANT = re.compile(r'(alignment_encoder|teacher|target_generator|data_preprocessor)\.|.*\brelative_position_index$|steps$|n_averaged$')
TOKENIZER = 'target_generator.'
CAE_PARTS = ('backbone.', 'regressor.', 'decoder.', 'pos_embed')
ENCODER_PARTS = ('cls_token', 'pos_embed', 'patch_embed.', 'blocks.', 'norm.', 'fc_norm.')


# What the names of CAE's own parts begin with, by kind; the rest are copies, tokenizers, and heads of other tasks.
KINDS = {
    'mmcae': CAE_PARTS,
    'official': ('encoder.', 'encoder_to_regresser', 'regresser.', 'decoder.', 'mask_token', 'rd_pos_embed'),
    'mmpretrain': ('backbone.', 'neck.'),
    'encoder': ENCODER_PARTS,
    'mmpretrain-encoder': ('cls_token', 'pos_embed', 'patch_embed.', 'layers.', 'ln1.', 'ln2.'),
}


def detect_kind(state: Mapping, origin: str | Path = 'This') -> str:
    """Which of the kinds in :mod:`mmcae.checkpoints` the keys of a state dict belong to; `origin` names it in messages.

    Raises:
        CheckpointError: None of them.
    """
    for kind, prefix in (
        ('official', 'encoder.blocks.'),
        ('mmcae', 'backbone.blocks.'),
        ('mmpretrain', 'backbone.layers.'),
        ('encoder', 'blocks.'),
        ('mmpretrain-encoder', 'layers.'),
    ):
        if any(key.startswith(f'{prefix}0.') for key in state) and any('attn.qkv' in key for key in state):
            return kind
    raise CheckpointError(
        f'{origin} is no CAE checkpoint of a known layout; its keys begin with {", ".join(list(state)[:3])} ... '
        'Known are those of mmcae, the authors (Atten4Vis/CAE), mmpretrain, mmselfsup, and BEiT encoders of timm.'
    )


def convert_official(state: Mapping) -> StateDict:
    """The authors' pretraining state dict under mmcae's names. The alignment encoder is left out: it equals the encoder."""
    return _with_latent_positions(_rename(state, OFFICIAL))


def to_official(state: Mapping) -> StateDict:
    """The inverse of :func:`convert_official`, with the copy of the encoder that the authors' loader expects, in their order."""
    state = _rename(_without_redundant(state), [(ours, theirs) for theirs, ours in OFFICIAL])
    state |= {f'alignment_{key}': value for key, value in state.items() if key.startswith('encoder.')}
    if 'rd_pos_embed' in state:
        table = state['rd_pos_embed']
        state['rd_pos_embed'] = torch.cat((torch.zeros_like(table[:, :1]), table), dim=1)
    rank = {key: next(i for i, prefix in enumerate(OFFICIAL_ORDER) if key.startswith(prefix)) for key in state}
    return {key: state[key] for key in sorted(state, key=rank.get)}


def convert_mmpretrain(state: Mapping) -> StateDict:
    """A state dict of mmpretrain's CAE, or of any of its models on BEiTViT, under mmcae's names; tokenizer and teacher left out."""
    parts = _parts(state, 'mmpretrain')
    return _with_latent_positions(_rename({key: value for key, value in state.items() if key.startswith(parts)}, MMPRETRAIN))


def to_mmpretrain(state: Mapping, pool: str = 'token') -> StateDict:
    """The inverse of :func:`convert_mmpretrain`; the encoder is repeated as the teacher that mmpretrain keeps.

    Args:
        state: State dict under mmcae's names, whole or encoder only (with the prefix `backbone.`).
        pool: Which of BEiTViT's norms gets the encoder's: 'token' the one it has with final_norm=True, as in pretraining; 'avg' the one
            it has with out_type='avg_featmap', which is for the encoder alone.

    Raises:
        CheckpointError: The regressor is of another width than the encoder, which mmpretrain cannot express.
    """
    if _is_average(pool):
        state = {key: value for key, value in state.items() if key.startswith('backbone.')}
    if any(key.startswith('regressor.project.') for key in state):
        raise CheckpointError('mmpretrain has no projection between encoder and regressor: it needs both to have the same width')
    state = {key: value for key, value in _without_redundant(state).items() if key != 'pos_embed'}
    inverse = [(ours, theirs) for theirs, ours in MMPRETRAIN if not theirs.startswith('backbone.ln')]
    inverse.insert(0, ('backbone.norm.', 'backbone.ln2.' if _is_average(pool) else 'backbone.ln1.'))
    renamed = _rename(state, inverse)
    if any(key.startswith('neck.') for key in renamed):
        renamed |= {key.replace('backbone.', 'teacher.', 1): value for key, value in renamed.items() if key.startswith('backbone.')}
    return renamed


def convert_timm(state: Mapping) -> StateDict:
    """timm's BEiT state dict as an mmcae state dict with an encoder alone (the prefix `backbone.`); its classifier left out."""
    state = {key.replace('fc_norm.', 'norm.', 1): value for key, value in _without_redundant(state).items()}
    return {f'backbone.{key}': value for key, value in state.items() if key.startswith(ENCODER_PARTS)}


def to_timm(state: Mapping, pool: str = 'token') -> StateDict:
    """The encoder under the names of timm's BEiT (`timm.create_model('beit_base_patch16_224', ...)`).

    Args:
        state: State dict under mmcae's names.
        pool: 'token' for models made with `global_pool='token'`, which normalise all tokens; 'avg' for `global_pool='avg'`,
            timm's default, which normalise the mean over the patches.
    """
    encoder = encoder_of(state)
    if not _is_average(pool):
        return encoder
    return {f'fc_{key}' if key.startswith('norm.') else key: value for key, value in encoder.items()}


def to_mmcae(state: Mapping, kind: str | None = None) -> StateDict:
    """A state dict of any kind (see :mod:`mmcae.checkpoints`) under mmcae's names; keys that belong to none of its parts stay."""
    kind = kind or detect_kind(state)
    state = _split_qkv_bias(state)
    if kind == 'official':
        return convert_official(state)
    if kind == 'mmpretrain':
        return convert_mmpretrain(state)
    if kind == 'mmpretrain-encoder':
        return convert_mmpretrain({f'backbone.{key}': value for key, value in state.items() if key.startswith(KINDS[kind])})
    if kind == 'encoder':
        return convert_timm(state)
    if kind == 'mmcae':
        return _without_redundant(state)
    raise CheckpointError(f'Unknown kind of checkpoint {kind!r}, known are {", ".join(KINDS)}')


def left_out(state: Mapping, kind: str) -> list[str]:
    """The keys of a state dict that are no part of CAE: copies of the encoder, tokenizers, heads and necks of other tasks."""
    return [key for key in state if REDUNDANT.match(key) or not key.startswith(_parts(state, kind))]


def cae_of(state: Mapping) -> StateDict:
    """Encoder, regressor and decoder out of a state dict under mmcae's names: what is left without heads and necks of other tasks."""
    return {key: value for key, value in _without_redundant(state).items() if key.startswith(CAE_PARTS)}


def tokenizer_of(state: Mapping) -> StateDict:
    """The frozen tokenizer inside a pretraining checkpoint of mmpretrain, without prefix."""
    return {key.removeprefix(TOKENIZER): value for key, value in state.items() if key.startswith(TOKENIZER)}


def encoder_of(state: Mapping) -> StateDict:
    """The encoder alone out of a state dict under mmcae's names, without prefix."""
    return {key.removeprefix('backbone.'): value for key, value in _without_redundant(state).items() if key.startswith('backbone.')}


def _parts(state: Mapping, kind: str) -> tuple[str, ...]:
    if kind == 'mmpretrain' and not any(key.startswith('neck.regressors.') for key in state):
        return ('backbone.',)  # a model other than CAE: what its neck does is its own affair
    return KINDS[kind]


def _is_average(pool: str) -> bool:
    if pool not in ('token', 'avg'):
        raise CheckpointError(f"pool must be 'token' or 'avg', got {pool!r}")
    return pool == 'avg'


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


def _without_redundant(state: Mapping) -> StateDict:
    return {key: value for key, value in state.items() if not REDUNDANT.match(key)}


def _rename(state: Mapping, table: Iterable[tuple[str, str]]) -> StateDict:
    rules = [(re.compile(re.escape(old).replace(r'\{n\}', r'(\d+)').replace(r'\{x\}', '([qkv])')), new) for old, new in table]
    renamed = {}
    for key, value in _without_redundant(state).items():
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
