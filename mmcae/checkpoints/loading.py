"""Putting weights into a model: every tensor, or an error that says which and why."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..utils.errors import CheckpointError
from .hugging_face_configs import ACTIVATIONS
from .hugging_face_models import activation_of
from .low_rank import PART, beside_updates
from .spec import EncoderSpec, Origin, ViewSpec
from .tables import grid_of_table
from .timm_names import HEADS, VIT
from .weights import Weights, read_weights

REMEDY = (
    'Give the model the arch and patch_size of the checkpoint, its in_channels unless they are 3, and layer_scale_init_value=0 where '
    'it has no gamma; convert other layouts with mmcae convert'
)
REMEDY_VIT = 'Give the encoder the model_name of timm, and the arguments, that the checkpoint is of'
SCALED = {'gamma_1': 'attn.proj', 'gamma_2': 'mlp.fc2'}  # the layers of a CAEViT's block whose outputs are scaled
OPTIONS = {'checkpoint', 'allow_missing', 'prefix', 'norm'}


def pretrained_source(init_cfg) -> dict | None:
    """The arguments of :func:`load_encoder_weights` in `init_cfg=dict(type='Pretrained', checkpoint=...)`, or None without one."""
    if not init_cfg:
        return None
    settings = dict(init_cfg[0] if isinstance(init_cfg, (list, tuple)) else init_cfg)
    if settings.pop('type', 'Pretrained') != 'Pretrained':
        raise CheckpointError(f"init_cfg={init_cfg}: only dict(type='Pretrained', checkpoint=PATH) is known here")
    unknown = set(settings) - OPTIONS
    if unknown or not settings.get('checkpoint'):
        raise CheckpointError(
            f'init_cfg={init_cfg} needs `checkpoint` and may have {", ".join(sorted(OPTIONS - {"checkpoint"}))}; unknown: {sorted(unknown)}'
        )
    return settings


def load_encoder_weights(
    encoder: nn.Module,
    checkpoint: str | Path | Mapping | Weights,
    allow_missing: Iterable[str] = (),
    prefix: str = '',
    norm: str | None = None,
    origin: str | None = None,
) -> str:
    """Load an encoder out of a checkpoint of any kind; report what happened, and fail unless the encoder is fully covered.

    Args:
        encoder: A :class:`mmcae.models.CAEViT` or :class:`mmcae.models.TimmEncoder`.
        checkpoint: Path, a checkpoint's content, or weights that were read already.
        allow_missing: Parts of names that need not be in the checkpoint, e.g. `relative_position_bias_table`, which pretraining
            does not have.
        prefix: Which encoder of several, see :func:`.layouts.locate`.
        norm: Which norm of two, see :func:`.renaming.to_mmcae`.
        origin: What to call the checkpoint in messages, where its content is given.

    Returns:
        The report, which is also logged.

    Raises:
        CheckpointError: The checkpoint is of another encoder, see :func:`load_strictly` and :meth:`.EncoderSpec.differences`.
    """
    weights = read_weights(checkpoint, prefix, norm=norm, origin=origin)
    ours = encoder.spec
    if ours.type == 'TimmEncoder':
        return load_vit(encoder, weights, allow_missing)
    theirs = weights.spec(img_size=ours.img_size)
    check_heads_agree(weights.origin, theirs.num_heads, ours.num_heads, 'model.backbone.arch')
    state = weights.encoder
    if isinstance(encoder.norm, nn.Identity):
        # The dense protocols do without the final norm on purpose.
        state = {key: value for key, value in state.items() if not key.startswith('norm.')}
    notes = [] if theirs.num_heads else [f"the number of heads is not told: the model's {ours.num_heads} are taken"]
    if theirs.layer_scale and not ours.layer_scale:
        state = merge_layer_scale(state)
        notes.append('its layer scale, which the model does not have, is merged into the layers before it')
    if theirs.grid != ours.grid:
        grids = ' and '.join('x'.join(map(str, spec.grid)) for spec in (theirs, ours))
        notes.append(f'made for another grid of patches than the model ({grids})')
    unused = len(weights.state) - len(state)
    return load_strictly(encoder, state, f'{weights.origin} ({weights.place.kind})', allow_missing, unused, notes, theirs)


def merge_layer_scale(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An encoder without layer scale that computes the same: the scale is in the weight and the bias of the layer before it.

    Args:
        state: State dict of a CAEViT that has one.
    """
    merged = dict(state)
    for key, gamma in state.items():
        block, _, name = key.rpartition('.')
        layer = f'{block}.{SCALED.get(name)}'
        if f'{layer}.bias' in state:
            gamma = gamma.to(torch.promote_types(gamma.dtype, torch.float32))  # products of half precision would be rounded again
            merged[f'{layer}.weight'] = gamma[:, None] * state[f'{layer}.weight']
            merged[f'{layer}.bias'] = gamma * state[f'{layer}.bias']
            del merged[key]
    return merged


def load_vit(encoder: nn.Module, weights: Weights, allow_missing: Iterable[str] = ()) -> str:
    """The same for a :class:`mmcae.models.TimmEncoder`, whose names are timm's."""
    ours, state = encoder.spec, weights.vit
    theirs = weights.described
    if theirs is None and weights.config.get('num_attention_heads'):
        check_heads_agree(weights.origin, weights.config['num_attention_heads'], ours.num_heads, 'model.backbone')
    if theirs is not None:
        check_heads_agree(weights.origin, theirs.num_heads, ours.num_heads, 'model.backbone')
    else:
        check_activations_agree(weights, encoder)
    # The final norm is that of the tokens or that of their mean, whichever the model has.
    kept, other = ('norm.', 'fc_norm.') if ours.final_norm else ('fc_norm.', 'norm.')
    if not any(key.startswith(kept) for key in state):
        state = {kept + key.removeprefix(other) if key.startswith(other) else key: value for key, value in state.items()}
    state = {key: value for key, value in state.items() if not key.startswith(other)}
    if isinstance(encoder.norm_of_tokens_or_mean, nn.Identity):  # dense protocols do without
        state = {key: value for key, value in state.items() if not key.startswith(kept)}
    if theirs is None:
        theirs = ours.replaced(origin=Origin(library=weights.library), view=weights.view or told_view(weights, ours))
    table = state.get('pos_embed')
    if table is not None and weights.described is None:
        prefix = 0 if encoder.vit.no_embed_class else encoder.num_prefix_tokens
        grid = grid_of_table(table[:, prefix:], ours.grid) or ours.grid
        size = tuple(cells * patch for cells, patch in zip(grid, ours.patch_size, strict=True))
        theirs = theirs.replaced(img_size=size)
    own = weights.place.kind == 'mmcae'
    notes = []
    told = weights.config.get('preprocessor') or 'architecture' in weights.config
    if not told and weights.described is None and weights.library in ('timm', 'huggingface'):
        notes.append(f'how its images were normalised is not told: mean {theirs.view.mean} and std {theirs.view.std} are taken')
    unused = len(weights.place.state) - len(state) if own else sum(key.startswith(HEADS) for key in weights.place.state)
    if weights.place.beside:
        unused += len(weights.place.beside)
        notes.append(f'beside the encoder are {", ".join(sorted({key.split(".")[0] for key in weights.place.beside}))}')
    state = {VIT + key: value for key, value in state.items()}
    try:
        return load_strictly(
            encoder, state, f'{weights.origin} ({theirs.origin.library})', allow_missing, unused, notes, theirs, REMEDY_VIT
        )
    except CheckpointError as error:
        raise CheckpointError(f'{str(error).rstrip(".")}.{own_model(weights, encoder)}') from error


def told_view(weights: Weights, ours: EncoderSpec) -> ViewSpec | None:
    """How the images of released weights were prepared: as the files beside them say, or the family that the tensors tell; else as timm has
    it for the model that was named.
    """
    try:
        view = weights.timm_model(ours.num_heads, ours.img_size).view if weights.is_vit else None
    except CheckpointError:
        view = None
    return replace(view, size=ours.img_size) if view else ours.view


def own_model(weights: Weights, encoder: nn.Module) -> str:
    """A sentence that names the model of timm which the weights are of, where it is known and another one than the encoder."""
    if not weights.is_vit:
        return ''
    try:
        arguments = dict(weights.timm_model().arguments)
    except CheckpointError:
        return ''
    name = arguments.pop('model_name')
    arguments = {key: value for key, value in arguments.items() if key != 'img_size' and value not in (None, encoder.arguments.get(key))}
    if name == encoder.model_name and not arguments:
        return ''
    settings = ', '.join(f'{key}={value!r}' for key, value in dict(model_name=name, **arguments).items())
    return f' By its tensors it is {name}: set {settings} in the encoder.'


def check_heads_agree(origin: str, theirs: int | None, ours: int, where: str):
    """Refuse weights for another number of heads, whose tensors have the same shapes; None where it is not known.

    Raises:
        CheckpointError: They differ.
    """
    if theirs not in (None, ours):
        raise CheckpointError(
            f'{origin} was made for {theirs} attention heads, and the model has {ours}: set num_heads={theirs} in {where}'
        )


def check_activations_agree(weights: Weights, encoder: nn.Module):
    """Refuse weights that Hugging Face's config.json tells to be for another activation, as OpenAI's CLIP and that of others have.

    Raises:
        CheckpointError: They differ; the message names the model of timm.
    """
    told = ACTIVATIONS.get(weights.config.get('hidden_act'))
    gated = weights.config.get('use_swiglu_ffn') or weights.config.get('use_gated_mlp')
    if told is None or gated:
        return
    ours = ACTIVATIONS[activation_of(encoder)]
    if ours != told:
        raise CheckpointError(f'{weights.origin} was made for MLPs with {told}, and the model has {ours}.{own_model(weights, encoder)}')


def load_strictly(
    module: nn.Module,
    state: Mapping,
    origin: str,
    allow_missing: Iterable[str] = (),
    unused: int = 0,
    notes: Iterable[str] = (),
    spec: EncoderSpec | None = None,
    remedy: str = REMEDY,
) -> str:
    """Load a state dict that has to cover the module; report matched, resized, missing and unexpected tensors.

    Args:
        module: What to load into. Its `fit_state_dict` may resize tables to its grid.
        state: State dict under the module's names.
        origin: Where it comes from, for messages.
        allow_missing: Parts of names that may be missing, or be of another shape; they keep their present values.
        unused: Number of tensors of the checkpoint that are not meant for this module, for the report.
        notes: Further sentences for the report.
        spec: What is known of the encoder in the state dict.
        remedy: What to do where it does not fit, for the message.

    Raises:
        CheckpointError: A tensor is missing, unexpected or of another shape. The message names the first ones and the remedy.
            The module is unchanged then.
    """
    allow_missing = tuple(allow_missing)
    target = module.state_dict()
    state = beside_updates(state, target)
    missing = [key for key in target if key not in state and PART not in key]
    unexpected = [key for key in state if key not in target]
    try:
        fitted = module.fit_state_dict(state, spec) if hasattr(module, 'fit_state_dict') else dict(state)
    except CheckpointError as error:
        raise CheckpointError(f'{origin} does not fit this {type(module).__name__}. {error}') from error
    clashing = [key for key in state if key in target and fitted[key].shape != target[key].shape]
    excused = [key for key in (*missing, *clashing) if any(part in key for part in allow_missing)]
    absent = [key for key in missing if key not in excused]
    clashes = [
        f'{key} {tuple(fitted[key].shape)} in the checkpoint, {tuple(target[key].shape)} in the model'
        for key in clashing
        if key not in excused
    ]
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
            + f'. {remedy}; list what may be missing or of another shape in init_cfg.allow_missing.'
        )
    loaded = [key for key in state if key in target and key not in clashing]
    whole = [key for key in loaded if target[key].is_floating_point() and not state[key].is_floating_point()]
    if whole:
        raise CheckpointError(f'{origin} has {whole[0]} as {state[whole[0]].dtype}, as quantised models do: take the file before that')
    # strict=False only for what was excused above.
    module.load_state_dict({key: fitted[key] for key in loaded}, strict=False)
    if spec is not None:
        encoder = getattr(module, 'backbone', module)
        encoder.view, encoder.origin = spec.view, spec.origin
    changed = [key for key in loaded if fitted[key].shape != state[key].shape]
    adapted = [key for key in changed if key.endswith('patch_embed.proj.weight')]
    resized = [key for key in changed if key not in adapted]
    report = f'{name}: {len(loaded)} of {len(target)} tensors loaded from {origin}'
    report += f', {len(resized)} of them resized ({", ".join(resized[:3])}{" ..." if len(resized) > 3 else ""})' if resized else ''
    for key in adapted:
        report += f', {key} adapted from {state[key].shape[1]} to {fitted[key].shape[1]} channels'
    shape = ' in this shape' if set(excused) & set(clashing) else ''
    report += f'; {len(excused)} not in it{shape} and left as they are ({", ".join(allow_missing)})' if excused else ''
    report += f'; {unused} tensors of other parts unused' if unused else ''
    report += ''.join(f'; {note}' for note in notes)
    print_log(report, logger='current')
    return report
