"""From mmcae's names to those of other layouts, for the code that reads them."""

from collections.abc import Mapping

import torch
from torch import nn

from ..utils.errors import CheckpointError
from .reading import StateDict
from .renaming import MMPRETRAIN, OFFICIAL, OFFICIAL_V2, encoder_of, is_v2, rename, without_redundant
from .spec import EncoderSpec

# The authors' downstream code recognises a pretraining checkpoint by its last key, which must be the decoder's.
OFFICIAL_ORDER = ('rd_pos_embed', 'mask_token', 'encoder.', 'alignment_encoder.', 'encoder_to_regresser', 'regresser.', 'decoder.')


def to_official(state: Mapping) -> StateDict:
    """The inverse of :func:`convert_official`, in the authors' order: with the copy of the encoder that their loader of CAE expects, or the
    unused norm of CAE v2.
    """
    v2 = is_v2(state)
    state = rename(without_redundant(state), [(ours, theirs) for theirs, ours in (OFFICIAL_V2 if v2 else OFFICIAL)])
    if v2:
        width = state['mask_token'].shape[-1]
        state |= {'regresser.norm.weight': torch.ones(width), 'regresser.norm.bias': torch.zeros(width)}
    else:
        state |= {f'alignment_{key}': value for key, value in state.items() if key.startswith('encoder.')}
    if 'rd_pos_embed' in state:
        table = state['rd_pos_embed']
        state['rd_pos_embed'] = torch.cat((torch.zeros_like(table[:, :1]), table), dim=1)
    rank = {key: next(i for i, prefix in enumerate(OFFICIAL_ORDER) if key.startswith(prefix)) for key in state}
    return {key: state[key] for key in sorted(state, key=rank.get)}


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
    if is_v2(state):
        raise CheckpointError('mmpretrain has no CAE v2: convert the encoder alone, by --to encoder first')
    if any(key.startswith('regressor.project.') for key in state):
        raise CheckpointError('mmpretrain has no projection between encoder and regressor: it needs both to have the same width')
    state = {key: value for key, value in without_redundant(state).items() if key != 'pos_embed'}
    inverse = [(ours, theirs) for theirs, ours in MMPRETRAIN if not theirs.startswith('backbone.ln')]
    inverse.insert(0, ('backbone.norm.', 'backbone.ln2.' if _is_average(pool) else 'backbone.ln1.'))
    renamed = rename(state, inverse)
    if any(key.startswith('neck.') for key in renamed):
        renamed |= {key.replace('backbone.', 'teacher.', 1): value for key, value in renamed.items() if key.startswith('backbone.')}
    return renamed


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


def _is_average(pool: str) -> bool:
    if pool not in ('token', 'avg'):
        raise CheckpointError(f"pool must be 'token' or 'avg', got {pool!r}")
    return pool == 'avg'


def timm_arguments(spec: EncoderSpec, pool: str = 'token') -> dict:
    """The arguments of `timm.create_model` for the BEiT that takes what :func:`to_timm` gives.

    Args:
        spec: The encoder's description.
        pool: As given to `to_timm`.

    Returns:
        All arguments, the model's name as `model_name`.

    Raises:
        CheckpointError: timm's BEiT has no such shape.
    """
    dim, depth, heads, (height, width), patch = spec.embed_dims, spec.num_layers, spec.num_heads, spec.img_size, spec.patch_size
    if patch[0] != patch[1] or dim % heads or not spec.final_norm or spec.window_size or (height != width and spec.use_rel_pos_bias):
        raise CheckpointError(
            "timm's BEiT has square patches, a width that its heads divide, a final norm, no windows, and relative position biases for "
            'square images only; this encoder differs'
        )
    large = (dim, depth, heads) == (1024, 24, 16)
    arguments = dict(model_name='beit_large_patch16_224' if large else 'beit_base_patch16_224', num_classes=0, global_pool=pool)
    arguments |= dict(use_abs_pos_emb=True, use_rel_pos_bias=spec.use_rel_pos_bias)
    if not large and (dim, depth, heads) != (768, 12, 12):
        arguments |= dict(embed_dim=dim, depth=depth, num_heads=heads)
    if not spec.layer_scale:
        arguments |= dict(init_values=0)  # timm takes None for its own default
    for name, value, default in (
        ('img_size', height if height == width else (height, width), 224),
        ('patch_size', patch[0], 16),
        ('in_chans', spec.in_channels, 3),
        ('mlp_ratio', spec.feedforward_channels / dim, 4),
    ):
        if value != default:
            arguments[name] = value
    return arguments


def refuse(parts: Mapping, tool: str):
    """Stop at parts that a tool's model does not have.

    Raises:
        CheckpointError: With the parts.
    """
    found = [name for name, present in parts.items() if present]
    if found:
        raise CheckpointError(f'{tool} cannot express this encoder: it has {" and ".join(found)}')


def unusual_blocks(encoder: nn.Module) -> dict[str, bool]:
    """What the blocks of a TimmEncoder have that ViTs of other tools have not, for :func:`refuse`; their names can be the same."""
    block = encoder.blocks[0]
    kind, attention = type(block).__name__, type(getattr(block, 'attn', None)).__name__
    return {
        f"timm's {kind}s in place of a norm and an attention, a norm and an MLP": kind not in ('Block', 'EvaBlock'),
        f"timm's {attention}": kind in ('Block', 'EvaBlock') and attention not in ('Attention', 'AttentionRope', 'EvaAttention'),
        'norms inside attentions or MLPs': any('.attn.norm.' in key or '.mlp.norm.' in key for key in encoder.state_dict()),
    }
