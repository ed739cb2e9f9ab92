"""Putting weights into a model: every tensor, or an error that says which and why."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from mmengine.logging import print_log
from torch import nn

from ..utils.errors import CheckpointError
from .reading import load_state, name_of
from .renaming import detect_kind, encoder_of, to_mmcae


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
