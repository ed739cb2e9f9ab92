"""Segmentation from frozen patch features: by nearest patches, and by one linear layer (CAPI, arXiv 2502.08769; DINOv2, arXiv 2304.07193).

Both learn from patches: a patch's label is the most frequent one of its pixels. Both predict scores of each patch, which are resized to the
label map by bilinear interpolation.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.errors import DataError
from .knn import knn_scores
from .linear import LinearModel, Standardization
from .metrics import IGNORED, class_areas, mean_iou
from .sweep import RATES, train_heads

NEIGHBOURS = (1, 3, 10, 30)
CHUNK = 2**14  # patches that are scored at a time


def patch_labels(label_map: Tensor, grid: tuple[int, int], patch_size: tuple[int, int], num_classes: int) -> Tensor:
    """The most frequent label of each patch; of equally frequent ones the lowest.

    Args:
        label_map: Integers (H, W): classes, or 255. Resized, without interpolation, to the patches' pixels.
        grid: Patches, (rows, columns).
        patch_size: (h, w) in pixels.
        num_classes: Number of classes K.

    Returns:
        int64 (rows * columns,): classes, or 255 where most pixels are 255.

    Raises:
        DataError: A number in the map is neither a class nor 255.
    """
    size = tuple(cells * pixels for cells, pixels in zip(grid, patch_size, strict=True))
    if tuple(label_map.shape) != size:
        label_map = F.interpolate(label_map[None, None].float(), size, mode='nearest-exact')[0, 0]
    labels = label_map.long()
    if len(wrong := labels[(labels != IGNORED) & ((labels < 0) | (labels >= num_classes))]):
        raise DataError(f'A label map has the number {int(wrong[0])}; classes are 0 to {num_classes - 1}, and 255 is ignored')
    labels = torch.where(labels == IGNORED, num_classes, labels)  # a class behind all others
    tiles = labels.unflatten(1, (grid[1], -1)).unflatten(0, (grid[0], -1)).permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    counts = torch.zeros(len(tiles), num_classes + 1, dtype=torch.int64, device=tiles.device)
    counts.scatter_add_(1, tiles, torch.ones_like(tiles))
    most = counts.argmax(dim=1)
    return torch.where(most == num_classes, IGNORED, most)


@dataclass
class PatchBank:
    """Labelled patches to learn from, those whose label is 255 left out.

    Args:
        features: (n, D).
        labels: int64 (n,).
        num_classes: Number of classes K.
    """

    features: Tensor
    labels: Tensor
    num_classes: int

    def __post_init__(self):
        kept = self.labels != IGNORED
        if not kept.any():
            raise DataError('No patch of the training split has a label: all pixels of its label maps are ignored (255)')
        self.features, self.labels = self.features[kept].float(), self.labels[kept]


@dataclass
class DenseSplit:
    """Images to predict label maps of.

    Args:
        features: (N, rows * columns, D), floating point; may be mapped into memory.
        grid: Patches, (rows, columns).
        maps: The label maps one by one, integers (H, W), in the order of the features; asked for once in every pass.
    """

    features: Tensor
    grid: tuple[int, int]
    maps: Callable[[], Iterable[Tensor]]


Scorer = Callable[[Tensor], Tensor]


def areas_of(split: DenseSplit, scorer: Scorer, num_classes: int, device: str | torch.device = 'cpu') -> np.ndarray:
    """Predict the label maps of a split by several models at once.

    Args:
        split: The images.
        scorer: A function of patch features (n, D) that gives the scores of S models, (S, n, K).
        num_classes: Number of classes K.
        device: Where to compute.

    Returns:
        int64 (S, N, 3, K), see :func:`mmcae.evaluation.metrics.class_areas`.
    """
    found: list[Tensor] = []
    together = max(1, CHUNK // split.features.shape[1])
    maps = iter(split.maps())
    for start in range(0, len(split.features), together):
        part = split.features[start : start + together].to(device).float()
        scores = scorer(part.flatten(0, 1)).unflatten(1, (len(part), *split.grid)).permute(1, 0, 4, 2, 3)
        for models in scores:
            truth = next(maps).to(device)
            resized = (F.interpolate(one[None], tuple(truth.shape), mode='bilinear', align_corners=False)[0] for one in models)
            found.append(torch.stack([class_areas(truth, one.argmax(dim=0), num_classes) for one in resized]).cpu())
    return torch.stack(found, dim=1).numpy()


def miou_of(areas: np.ndarray) -> float:
    """mIoU in [0, 1] of all images together."""
    return mean_iou(areas)(np.ones(len(areas)))


def knn_segmentation(
    bank: PatchBank, val: DenseSplit, test: DenseSplit, k: Sequence[int] = NEIGHBOURS, device: str | torch.device = 'cpu'
) -> tuple[np.ndarray, str]:
    """Each patch gets the votes of its k nearest patches by cosine, one vote each; k is chosen on the validation split.

    Args:
        bank: Patches of the training split.
        val, test: The other splits.
        k: Numbers of neighbours to choose from; those beyond the size of the bank count as all of it.
        device: Where to compute.

    Returns:
        The areas of the test split, see :func:`areas_of`, and what was chosen.
    """
    known, labels = bank.features.to(device), bank.labels.to(device)
    counts = sorted({min(count, len(known)) for count in k})

    def scorer(queries: Tensor, counts: Sequence[int]) -> Tensor:
        return torch.stack(list(knn_scores(queries, known, labels, bank.num_classes, counts, float('inf')).values()))

    chosen = counts[0]
    if len(counts) > 1:
        tried = areas_of(val, partial(scorer, counts=counts), bank.num_classes, device)
        chosen = counts[max(range(len(counts)), key=lambda number: miou_of(tried[number]))]
    (areas,) = areas_of(test, partial(scorer, counts=[chosen]), bank.num_classes, device)
    return areas, f'k = {chosen}'


def linear_segmentation(
    bank: PatchBank,
    val: DenseSplit,
    test: DenseSplit,
    rates: Sequence[float] = RATES,
    device: str | torch.device = 'cpu',
    **settings,
) -> tuple[np.ndarray, str]:
    """One linear layer on standardised patch features, trained on patch labels; the learning rate is chosen on the validation split.

    Args:
        bank: Patches of the training split.
        val, test: The other splits.
        rates: Learning rates to choose from.
        device: Where to compute.
        **settings: Of :func:`mmcae.evaluation.sweep.train_heads`.

    Returns:
        The areas of the test split, see :func:`areas_of`, and what was chosen.
    """
    features, labels = bank.features.to(device), bank.labels.to(device)
    standardization = Standardization.of(features)
    heads = train_heads(standardization(features), labels, bank.num_classes, rates, **settings)

    def scorer(queries: Tensor, heads: Sequence[LinearModel]) -> Tensor:
        queries = standardization(queries)
        return torch.stack([head(queries) for head in heads])

    chosen = 0
    if len(heads) > 1:
        tried = areas_of(val, partial(scorer, heads=heads), bank.num_classes, device)
        chosen = max(range(len(heads)), key=lambda number: miou_of(tried[number]))
    (areas,) = areas_of(test, partial(scorer, heads=[heads[chosen]]), bank.num_classes, device)
    edge = ' (end of the sweep)' if len(rates) > 1 and chosen in (0, len(rates) - 1) else ''
    return areas, f'lr {rates[chosen]:g}{edge}'
