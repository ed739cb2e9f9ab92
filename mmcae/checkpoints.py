"""Checkpoints of CAE in every layout people have: reading, renaming, and loading them strictly.

The pivot is mmcae's own layout: `backbone.` (the encoder, under BEiT's names), `regressor.`, `decoder.` and the position table
`pos_embed` that the latter two share. Every other layout is one table of renamings:

==================  ==================================================================  =====================
kind                what it is                                                          recognised by
==================  ==================================================================  =====================
mmcae               ours: pretraining, and every model with CAEViT as `backbone`        `backbone.blocks.`
official            the authors' pretraining                                            `encoder.blocks.`
mmpretrain          CAE or BEiTViT of mmpretrain and mmselfsup                          `backbone.layers.`
encoder             an encoder alone; ours, the authors', and timm's BEiT agree         `blocks.`
mmpretrain-encoder  mmpretrain's backbone alone                                         `layers.`
==================  ==================================================================  =====================

A plain ViT (MAE, DeiT, ... of mmpretrain, of timm or of MAE's authors) counts as `mmpretrain` or `encoder` and computes the same as CAEViT
with `layer_scale_init_value=0`.
"""

import argparse
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from .utils.errors import CheckpointError

StateDict = dict[str, Tensor]

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
# What wrappers of distributed training, averaging, compilation and activation checkpointing put into names.
WRAPPERS = re.compile(r'^(?:module\.)+|(?:^|(?<=\.))(?:_fsdp_wrapped_module|_orig_mod|_checkpoint_wrapped_module)\.')
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


# ---------------------------------------------------------------- reading


def read_checkpoint(path: str | Path, mmap: bool = False) -> dict:
    """Everything a checkpoint file holds, without ever running code from it.

    Args:
        path: A file written by torch.save (mmengine's, the authors', ...), or a .safetensors file.
        mmap: Read the tensors of torch.save's format when they are used, to look at something else in a large file.

    Returns:
        The file's content, on the CPU.

    Raises:
        CheckpointError: There is no such file, it is damaged, or it holds objects other than tensors and plain data.
    """
    path = Path(path)
    if not path.is_file():
        near = sorted(str(p) for p in path.parent.glob('*.pth'))[:5] if path.parent.is_dir() else []
        raise CheckpointError(f'There is no checkpoint {path}' + (f'; beside it are {", ".join(near)}' if near else ''))
    if path.suffix == '.safetensors':
        return read_safetensors(path)
    try:
        # The authors put their parsed arguments into the file: a Namespace is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location='cpu', weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        # Of torch's text the name alone: the rest is advice to switch its protection off.
        name = re.search(r'GLOBAL ([\w.]+)', str(error))
        reason = name[1] if name else first_sentence(str(error).split('error: ')[-1])
        raise CheckpointError(
            f'{path} was refused ({reason}): only tensors and plain data are read, because loading anything else can run code. '
            "Convert OpenAI's tokenizer with tools/model_converters/convert.py; save the state_dict alone of a module of your own"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise damaged(path, error) from error


def read_safetensors(path: Path) -> StateDict:
    """The tensors of a .safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> CheckpointError:
    """What to raise for a file that cannot be read as what its name says."""
    return CheckpointError(f'{path} is damaged or no checkpoint ({type(error).__name__}: {first_sentence(str(error))})')


def first_sentence(text: str) -> str:
    """Of a library's message what is wrong; what follows is advice that does not apply here."""
    return text.strip().split('\n')[0].split('. ')[0].rstrip('.') or 'no reason given'


def write_state_dict(path: str | Path, state: StateDict):
    """Write tensors and nothing else, as .safetensors or, for .pth and .pt, by torch.save; an interrupted write leaves no file.

    Raises:
        CheckpointError: The suffix is none of these.
    """
    path = Path(path)
    if path.suffix not in ('.pth', '.pt', '.safetensors'):
        raise CheckpointError(f'{path}: the name must end in .pth, .pt or .safetensors, which decides the format')
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'{path.name}.partial')
    if path.suffix == '.safetensors':
        from safetensors.torch import save

        # Each tensor on its own, since the format knows no shared memory.
        partial.write_bytes(save({key: value.clone().contiguous() for key, value in state.items()}, metadata=dict(format='pt')))
    else:
        torch.save(state, partial)
    partial.replace(path)


def state_dict_of(content: Mapping) -> StateDict:
    """The state dict inside a checkpoint's content, with the names that wrappers add taken off."""
    for container in ('state_dict', 'model', 'module'):
        if isinstance(content.get(container), Mapping):
            content = content[container]
            break
    return {WRAPPERS.sub('', key): value for key, value in content.items() if isinstance(value, Tensor)}


def load_state(source: str | Path | Mapping, origin: str | Path | None = None) -> StateDict:
    """The state dict of a file, or of a mapping that is a checkpoint's content or already a state dict; `origin` names it in messages."""
    content = source if isinstance(source, Mapping) else read_checkpoint(source)
    if not isinstance(content, Mapping):
        raise CheckpointError(f'{source} holds a {type(content).__name__}, not a checkpoint')
    state = state_dict_of(content)
    if not state:
        raise CheckpointError(f'{origin or name_of(source)} holds no tensors: is it a checkpoint?')
    return state


def name_of(source) -> str:
    """What to call a source of weights in a message."""
    return 'the given state dict' if isinstance(source, Mapping) else str(source)


def detect_kind(state: Mapping, origin: str | Path = 'This') -> str:
    """Which of the kinds in this module's docstring the keys of a state dict belong to; `origin` names it in messages.

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


# ---------------------------------------------------------------- renaming


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
    """A state dict of any kind (see the module's docstring) under mmcae's names; keys that belong to none of its parts stay."""
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


# ---------------------------------------------------------------- loading


def pretrained_source(init_cfg) -> dict | None:
    """The arguments of :func:`load_encoder` in `init_cfg=dict(type='Pretrained', checkpoint=...)`, or None without one."""
    if not init_cfg:
        return None
    settings = dict(init_cfg[0] if isinstance(init_cfg, (list, tuple)) else init_cfg)
    if settings.pop('type', 'Pretrained') != 'Pretrained':
        raise CheckpointError(f"init_cfg={init_cfg}: only dict(type='Pretrained', checkpoint=PATH) is known here")
    unknown = set(settings) - {'checkpoint', 'allow_missing'}
    if unknown or not settings.get('checkpoint'):
        raise CheckpointError(f'init_cfg={init_cfg} needs `checkpoint` and may have `allow_missing`; unknown: {sorted(unknown)}')
    return settings


def load_encoder(encoder: nn.Module, checkpoint: str | Path | Mapping, allow_missing: Iterable[str] = (), origin: str | None = None) -> str:
    """Load an encoder out of a checkpoint of any kind; report what happened, and fail unless the encoder is fully covered.

    Args:
        encoder: A :class:`mmcae.models.CAEViT`.
        checkpoint: Path, or a checkpoint's content.
        allow_missing: Parts of names that need not be in the checkpoint, e.g. `relative_position_bias_table`, which pretraining
            does not have.
        origin: What to call the checkpoint in messages, where its content is given.

    Returns:
        The report, which is also logged.

    Raises:
        CheckpointError: See :func:`load_strictly`.
    """
    state = load_state(checkpoint)
    kind = detect_kind(state, origin or name_of(checkpoint))
    ours = to_mmcae(state, kind)
    encoder_state = encoder_of(ours)
    if isinstance(encoder.norm, nn.Identity):
        # The dense protocols do without the final norm on purpose.
        encoder_state = {key: value for key, value in encoder_state.items() if not key.startswith('norm.')}
    return load_strictly(
        encoder, encoder_state, f'{origin or name_of(checkpoint)} ({kind})', allow_missing, unused=len(ours) - len(encoder_state)
    )


def load_strictly(module: nn.Module, state: Mapping, origin: str, allow_missing: Iterable[str] = (), unused: int = 0) -> str:
    """Load a state dict that has to cover the module; report matched, resized, missing and unexpected tensors.

    Args:
        module: What to load into. Its own hooks may resize tables to its grid.
        state: State dict under the module's names.
        origin: Where it comes from, for messages.
        allow_missing: Parts of names that may be missing, or be of another shape; they keep their present values.
        unused: Number of tensors of the checkpoint that are not meant for this module, for the report.

    Raises:
        CheckpointError: A tensor is missing, unexpected or of another shape. The message names the first ones and the remedy.
            The module is unchanged then.
    """
    allow_missing = tuple(allow_missing)
    target = module.state_dict()
    missing = [key for key in target if key not in state]
    unexpected = [key for key in state if key not in target]
    fitted = module.fit_state_dict(state) if hasattr(module, 'fit_state_dict') else dict(state)
    clashing = [key for key in state if key in target and fitted[key].shape != target[key].shape]
    excused = [key for key in (*missing, *clashing) if any(part in key for part in allow_missing)]
    absent = [key for key in missing if key not in excused]
    clashes = [
        f'{key} {tuple(fitted[key].shape)} in the checkpoint, {tuple(target[key].shape)} in the model'
        for key in clashing
        if key not in excused
    ]
    loaded = [key for key in state if key in target and key not in clashing]
    changed = [key for key in loaded if fitted[key].shape != state[key].shape]
    adapted = [key for key in changed if key.endswith('patch_embed.proj.weight')]
    resized = [key for key in changed if key not in adapted]
    name = type(module).__name__
    if absent or unexpected or clashes:
        problems = [
            f'{len(found)} {what}: {"; ".join(found[:3])}{" ..." if len(found) > 3 else ""}'
            for found, what in ((absent, 'missing'), (unexpected, 'unexpected'), (clashes, 'of another shape'))
            if found
        ]
        raise CheckpointError(
            f'{origin} does not fit this {name} ({len(state) - len(unexpected) - len(clashes)} of {len(target)} tensors match). '
            + '. '.join(problems)
            + '. Give the model the arch and patch_size of the checkpoint, its in_channels unless they are 3, and '
            'layer_scale_init_value=0 where it has no gamma; convert other layouts with tools/model_converters/convert.py; list what may '
            'be missing or of another shape in init_cfg.allow_missing.'
        )
    # strict=False only for what was excused above.
    module.load_state_dict({key: fitted[key] for key in loaded}, strict=False)
    report = f'{name}: {len(loaded)} of {len(target)} tensors loaded from {origin}'
    report += f', {len(resized)} of them resized ({", ".join(resized[:3])}{" ..." if len(resized) > 3 else ""})' if resized else ''
    for key in adapted:
        report += f', {key} adapted from {state[key].shape[1]} to {fitted[key].shape[1]} channels'
    shape = ' in this shape' if set(excused) & set(clashing) else ''
    report += f'; {len(excused)} not in it{shape} and left as they are ({", ".join(allow_missing)})' if excused else ''
    report += f'; {unused} tensors of other parts unused' if unused else ''
    print_log(report, logger='current')
    return report
