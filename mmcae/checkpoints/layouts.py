"""Which layout a checkpoint has, and where in it the encoder is; no more than the tensors and the layout's own rules tell is concluded."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..utils.errors import CheckpointError, argument
from .folders import refuse_pieces
from .low_rank import merge_low_rank
from .reading import StateDict, read_checkpoint

# What wrappers of distributed training, averaging, compilation and activation checkpointing put into names.
WRAPPERS = re.compile(r'^(?:module\.)+|(?:^|(?<=\.))(?:_fsdp_wrapped_module|_orig_mod|_checkpoint_wrapped_module)\.')
# Where training programs put the model; what else is in the file is then its average, its optimizer, and so on.
CONTAINERS = ('state_dict', 'model', 'module', '')
DEPTH = 4  # of containers in each other
# A transformer's first block and the patch embedding beside it make an encoder; decoders have the first alone.
ENCODERS = {
    'encoder': (
        re.compile(r'(|.*\.)blocks\.0\.(?:0\.)?(?:(?:attns\.0\.)?attn\.(?:qkv|q_proj)|in_proj)\.weight'),
        ('patch_embed.proj.weight',),
    ),
    'mmpretrain-encoder': (re.compile(r'(|.*\.)layers\.0\.attn\.qkv\.weight'), ('patch_embed.projection.weight',)),
    'huggingface': (
        re.compile(r'(|.*\.)layers?\.0\.(?:attention\.(?:attention\.query|q_proj)|self_attn\.q_proj)\.weight'),
        ('embeddings.patch_embeddings.projection.weight', 'embeddings.patch_embeddings.weight', 'embeddings.patch_embedding.weight'),
    ),
}
TIMM_BACKBONE = 'backbone.vit.'  # TimmEncoder in a model of ours
ENCODER_PARTS = (TIMM_BACKBONE, 'backbone.', 'encoder.')  # what whole models call their encoder
OFFICIAL_REGRESSOR = ('regresser.', 'encoder_to_regresser', 'alignment_encoder.')
KINDS = ('mmcae', 'official', 'mmpretrain', *ENCODERS)

# Heads by (width, depth), where a layout's authors have only one number for it. CAE's tiny and small have 12; timm's have 3 and 6.
SHARED_HEADS = {(768, 12): 12, (1024, 24): 16}
CAE_HEADS = {**SHARED_HEADS, (192, 12): 12, (384, 12): 12}
TIMM_HEADS = {**SHARED_HEADS, (192, 12): 3, (384, 12): 6, (1280, 32): 16, (1408, 40): 16, (1536, 40): 24}
MMPRETRAIN_HEADS = {**TIMM_HEADS, (768, 8): 8}
LW_DETR_HEADS = 12  # of its ViTs, CAE v2's 192, 384 and 768 wide, whose blocks are as many as the detector takes
# The authors' code gives regressor and decoder 12 heads whatever it is told.
CAE_DECODER_HEADS = dict.fromkeys((96, 384, 768, 1024), 12)


@dataclass
class Place:
    """Where a model is in a file.

    Args:
        path: Of the container, dotted; '' for the file's content itself.
        prefix: Of the names in it.
        kind: Out of `KINDS`.
        state: The tensors by their names in the container, prefix and wrappers taken off.
        beside: The container's other tensors, such as the text tower of CLIP.
    """

    path: str
    prefix: str
    kind: str
    state: StateDict = field(repr=False)
    beside: StateDict = field(repr=False, default_factory=dict)

    def __str__(self):
        return '.'.join(part for part in (self.path, self.prefix.rstrip('.')) if part) or 'the names as they are'


def content_of(source: str | Path | Mapping) -> Mapping:
    """The content of a file, or of a mapping that is a checkpoint's content or a state dict already.

    Raises:
        CheckpointError: See :func:`.reading.read_checkpoint`; or the file holds something else than a mapping, or a piece of a model.
    """
    if not isinstance(source, Mapping):
        refuse_pieces(Path(source))
    content = source if isinstance(source, Mapping) else read_checkpoint(source)
    if not isinstance(content, Mapping):
        raise CheckpointError(f'{name_of(source)} holds a {type(content).__name__}, not a checkpoint')
    return content


def name_of(source) -> str:
    """What to call a source of weights in a message."""
    return 'the given state dict' if isinstance(source, Mapping) else str(source)


def containers(content: Mapping, path: str = '', depth: int = 0) -> Iterator[tuple[str, StateDict]]:
    """All mappings in a checkpoint that have tensors in them: (dotted path, tensors by name without wrappers)."""
    tensors = {WRAPPERS.sub('', key): value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if tensors:
        yield path, merge_low_rank(tensors)
    if depth < DEPTH:
        for key, value in content.items():
            if isinstance(key, str) and isinstance(value, Mapping):
                yield from containers(value, f'{path}.{key}' if path else key, depth + 1)


def load_state(source: str | Path | Mapping, origin: str | None = None) -> StateDict:
    """The state dict of a checkpoint: the tensors of the first container there is, wrappers taken off.

    Args:
        source: A file, a checkpoint's content, or a state dict.
        origin: What to call it in messages.

    Raises:
        CheckpointError: There are no tensors.
    """
    found = dict(containers(content_of(source)))
    for path in CONTAINERS:
        if path in found:
            return found[path]
    raise no_tensors(found, origin or name_of(source))


def no_tensors(found: Mapping[str, StateDict], origin: str) -> CheckpointError:
    """What to raise for a checkpoint whose usual containers hold no tensors."""
    if not found:
        return CheckpointError(f'{origin} holds no tensors: is it a checkpoint?')
    listed = '; '.join(f'{path or "."} ({len(state)} tensors, {next(iter(state))} ...)' for path, state in list(found.items())[:6])
    return CheckpointError(f'{origin} has no state_dict, model or module with tensors in it. There are: {listed}')


def locate(source: str | Path | Mapping, prefix: str = '', kind: str | None = None, origin: str | None = None) -> Place:
    """Find the model in a checkpoint.

    Args:
        source: A file, a checkpoint's content, or a state dict.
        prefix: What stands before the model's names, with the containers it is in: 'teacher.backbone.', 'state_dict.model.encoder.'. Needed
            where a file has several models.
        kind: The layout, where it cannot be recognised.
        origin: What to call the source in messages.

    Raises:
        CheckpointError: There is none, or there are several. The message lists what there is.
    """
    origin = origin or name_of(source)
    found = dict(containers(content_of(source)))
    if not found:
        raise no_tensors(found, origin)
    if kind is not None:
        if kind not in KINDS:
            raise CheckpointError(f'Unknown kind of checkpoint {kind!r}, known are {", ".join(KINDS)}')
        return Place('', prefix, kind, below(found, prefix, origin) if prefix else load_state(source, origin))
    if prefix:
        found = {'': below(found, prefix, origin)}
    places = {path: list(places_in(path, state)) for path, state in found.items()}
    chosen = next((places[path] for path in CONTAINERS if places.get(path)), [place for few in places.values() for place in few])
    if len(chosen) == 1:
        return replace(chosen[0], prefix=prefix + chosen[0].prefix)
    if chosen:
        names = ', '.join(f"'{place}.'" for place in chosen)
        one = argument('prefix', f'{chosen[0]}.')
        raise CheckpointError(f'{origin} has {len(chosen)} encoders: {names}. Choose one: give {one}')
    state = next((found[path] for path in CONTAINERS if path in found), next(iter(found.values())))
    if any('.lora_A.' in key for key in state):
        raise CheckpointError(
            f'{origin} holds low-rank updates of peft: merge them into the model by its merge_and_unload(), and save that'
        )
    others = f' In it are {", ".join(path or "." for path in found)}.' if set(found) - set(CONTAINERS) else ''
    raise CheckpointError(
        f'{origin} holds no encoder of a known layout; its keys begin with {", ".join(list(state)[:3])} ...{others} '
        'Known are those of mmcae, the authors (Atten4Vis/CAE), mmpretrain, mmselfsup, and ViTs and BEiTs of timm, Meta and Hugging Face.'
    )


def below(found: Mapping[str, StateDict], prefix: str, origin: str) -> StateDict:
    """The tensors whose names, with their container before them, begin with a prefix; without it."""
    prefix = '.'.join(part for part in prefix.split('.') if part and part != 'module') + '.'
    state = {}
    for path, tensors in found.items():
        for key, value in tensors.items():
            name = '.'.join(part for part in f'{path}.{key}'.split('.') if part and part != 'module')
            for full in (name, key):  # the usual containers need not be named
                if full.startswith(prefix) and (full is name or path in CONTAINERS):
                    state[full.removeprefix(prefix)] = value
                    break
    if not state:
        first = {
            f'{path}.{key}'.split('.blocks.')[0].lstrip('.') for path, tensors in found.items() for key in tensors if '.blocks.' in key
        }
        listed = ', '.join(sorted(first)[:6]) or ', '.join(path or '.' for path in found)
        raise CheckpointError(f'{origin} has no tensor whose name begins with {prefix!r}; there are {listed}')
    return state


def places_in(path: str, state: StateDict) -> Iterator[Place]:
    """The models in one container: a whole layout, or each encoder that stands alone."""
    prefixes = {}
    for kind, (first_block, patch_embeddings) in ENCODERS.items():
        for key in state:
            match = first_block.fullmatch(key)
            # Hugging Face's embeddings can stand beside the part that has the layers.
            stems = (match[1], *(match[1].removesuffix(part) for part in ('encoder.', 'model.'))) if match else ()
            before = next((stem for stem in stems if any(stem + name in state for name in patch_embeddings)), None)
            if before is not None:
                prefixes[before] = kind
    # A whole model, perhaps behind a prefix of the program that trained it.
    outer = next((before.removesuffix(part) for part in ENCODER_PARTS for before in prefixes if is_whole(state, before, part)), None)
    if outer:
        prefixes = {before.removeprefix(outer): kind for before, kind in prefixes.items() if before.startswith(outer)}
        state = {key.removeprefix(outer): value for key, value in state.items() if key.startswith(outer)}
    outer = outer or ''
    if TIMM_BACKBONE in prefixes:
        yield Place(path, outer, 'mmcae', state)
    elif 'backbone.' in prefixes:
        yield Place(path, outer, 'mmcae' if prefixes['backbone.'] == 'encoder' else 'mmpretrain', state)
    elif 'encoder.' in prefixes and any(key.startswith(OFFICIAL_REGRESSOR) for key in state):
        yield Place(path, outer, 'official', state)
    elif '' in prefixes:
        yield Place(path, '', prefixes[''], state)
    else:
        for prefix, kind in prefixes.items():
            inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            yield Place(path, prefix, kind, inside, {key: value for key, value in state.items() if not key.startswith(prefix)})


def is_whole(state: Mapping, before: str, part: str) -> bool:
    """Whether an encoder behind `before`, which ends in its name within a model of CAE, has the model's regressor beside it."""
    beside = OFFICIAL_REGRESSOR if part == 'encoder.' else ('regressor.', 'neck.regressors.')
    outer = before.removesuffix(part)
    return before.endswith(part) and any(key.startswith(tuple(outer + name for name in beside)) for key in state)


def heads_of(place: Place, dim: int, depth: int) -> int | None:
    """The number of heads that a layout has for an encoder of this width and depth; None where it could be another.

    CAE's encoders and timm's BEiT share their names, so that only sizes on which both agree are known. The fused bias of queries, keys
    and values tells plain ViTs, whose heads are timm's.
    """
    in_model = (place.path, place.prefix, place.kind) == ('model', 'encoder.', 'encoder') and 'blocks.0.gamma_1' in place.state
    if in_model and dim in (192, 384, 768):  # LW-DETR's files, and the authors' without regressor
        return LW_DETR_HEADS
    rules = dict(official=CAE_HEADS, mmpretrain=MMPRETRAIN_HEADS, mmcae=SHARED_HEADS).get(place.kind.removesuffix('-encoder'), SHARED_HEADS)
    if place.kind == 'encoder' and 'blocks.0.attn.qkv.bias' in place.state:
        rules = TIMM_HEADS
    return rules.get((dim, depth))


def library_of(kind: str) -> str:
    """Whose layout a kind is."""
    known = ('official', 'mmpretrain', 'huggingface')
    return next((library for library in known if kind.startswith(library)), 'mmcae')


def meta_of(content: Any) -> Mapping:
    """The metadata beside the tensors of a checkpoint, empty where there are none."""
    meta = content.get('meta') if isinstance(content, Mapping) else None
    return meta if isinstance(meta, Mapping) else {}
