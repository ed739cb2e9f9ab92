"""Low-rank updates of weights (LoRA) in a checkpoint: merged when it is read, so that everything else knows plain encoders alone."""

from collections.abc import Mapping

from torch import Tensor

ORIGINAL = '.parametrizations.weight.original'  # the weight as it was, under torch's own name for it
PART = '.parametrizations.weight.0.'  # `up`, `down` and `scale` of its update


def merged(weight: Tensor, up: Tensor, down: Tensor, scale: Tensor) -> Tensor:
    """`weight + scale * up @ down`: (rows, columns), (rows, rank), (rank, columns) and a number."""
    return weight + (scale * (up @ down)).to(weight.dtype)


def merge_low_rank(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the updates in the weights, and without them beside."""
    plain = {}
    for key, value in state.items():
        if key.endswith(ORIGINAL):
            name = key.removesuffix(ORIGINAL)
            plain[f'{name}.weight'] = merged(value, *(state[f'{name}{PART}{part}'] for part in ('up', 'down', 'scale')))
        elif PART not in key:
            plain[key] = value
    return plain


def beside_updates(state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A plain state dict for a module with updates, whose weights have the name of the original."""
    return {(renamed if (renamed := key.removesuffix('.weight') + ORIGINAL) in target else key): value for key, value in state.items()}
