"""Classification from a handful of labels: the nearest class mean, over several draws of the labels."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.errors import ConfigError, DataError


def draw_labels(labels: Tensor, num_classes: int, shots: int, seed: int, names: Sequence[str] | None = None) -> Tensor:
    """Indices of `shots` samples of each class, drawn without replacement.

    With the same seed fewer shots are contained in more.

    Args:
        labels: int64 (N,).
        num_classes: Number of classes K.
        shots: Samples of each class.
        seed: Of the draw.
        names: Of the classes, for messages.

    Returns:
        int64 (K, shots).

    Raises:
        ConfigError: `shots` is below 1.
        DataError: A class has fewer samples.
    """
    if shots < 1:
        raise ConfigError(f'shots={shots} must be at least 1')
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    shuffled = labels.cpu()[order]
    chosen = []
    for number in range(num_classes):
        members = order[shuffled == number]
        if len(members) < shots:
            name = names[number] if names is not None else number
            raise DataError(
                f'Class {name!s} has {len(members)} image{"" if len(members) == 1 else "s"} to learn from, and {shots} labels a class were '
                'asked for: ask for fewer (--shots), or give it more images'
            )
        chosen.append(members[:shots])
    return torch.stack(chosen)


def few_shot(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    num_classes: int,
    shots: int,
    draws: int = 10,
    seed: int = 0,
    names: Sequence[str] | None = None,
) -> list[float]:
    """Accuracy of the nearest class mean with few labels, once for each draw (SimpleShot, arXiv 1911.04623: CL2N).

    Features are centred by the mean of all training features, which needs no labels, and scaled to length 1. Each class is the mean of
    its labelled samples; nothing is tuned.

    Args:
        train, test: Features (N, D) and labels int64 (N,) of each split.
        num_classes: Number of classes K.
        shots: Labels of each class.
        draws: How often they are drawn.
        seed: Of the first draw.
        names: Of the classes, for messages.

    Returns:
        Accuracies in [0, 1], one for each draw.

    Raises:
        ConfigError: `shots` or `draws` is below 1.
        DataError: A class has fewer than `shots` samples to draw from.
    """
    if draws < 1:
        raise ConfigError(f'draws={draws} must be at least 1')
    centre = train[0].mean(dim=0)
    known, asked = (F.normalize(features - centre, dim=1) for features in (train[0], test[0]))
    accuracies = []
    for draw in range(draws):
        index = draw_labels(train[1], num_classes, shots, seed + draw, names).to(known.device)
        means = known[index].mean(dim=1)
        distances = torch.cdist(asked, means)
        accuracies.append(float((distances.argmin(dim=1) == test[1]).double().mean()))
    return accuracies
