"""Segmentation from frozen patch features: by nearest patches, and by one linear layer (CAPI, arXiv 2502.08769; DINOv2, arXiv 2304.07193).

Both learn from patches: a patch's label is the most frequent one of its pixels. Both predict scores of each patch, which are resized to the
label map by bilinear interpolation. Images pass by batch after batch; in memory are one batch and the patches that are learnt from.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor

from ..utils.errors import DataError
from .knn import knn_scores
from .metrics import IGNORED, class_areas, mean_iou
from .sweep import BLOCKS, PATCHES, RATES, Head, features_for, heads_of, logits_of

NEIGHBOURS = (1, 3, 10, 30)
CHUNK = 2**14  # patches that are scored at a time


def check_numbers(label_map: Tensor, num_classes: int, name: str):
    """Refuse a label map with a number that is neither a class nor 255.

    Raises:
        DataError: Names the file and the number.
    """
    wrong = label_map[(label_map != IGNORED) & ((label_map < 0) | (label_map >= num_classes))]
    if len(wrong):
        raise DataError(
            f'{name} has the number {int(wrong[0])}; classes are 0 to {num_classes - 1}, and 255 is ignored: correct the label map, or the '
            'names of the classes'
        )


def patch_labels(label_map: Tensor, grid: tuple[int, int], patch_size: tuple[int, int], num_classes: int) -> Tensor:
    """The most frequent label of each patch; of equally frequent ones the lowest.

    Args:
        label_map: Integers (H, W): classes, or 255. Resized, without interpolation, to the patches' pixels.
        grid: Patches, (rows, columns).
        patch_size: (h, w) in pixels.
        num_classes: Number of classes K.

    Returns:
        int64 (rows * columns,): classes, or 255 where most pixels are 255.
    """
    size = tuple(cells * pixels for cells, pixels in zip(grid, patch_size, strict=True))
    if tuple(label_map.shape) != size:
        label_map = F.interpolate(label_map[None, None].float(), size, mode='nearest-exact')[0, 0]
    labels = label_map.long()
    labels = torch.where(labels == IGNORED, num_classes, labels)  # a class behind all others
    tiles = labels.unflatten(1, (grid[1], -1)).unflatten(0, (grid[0], -1)).permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    counts = torch.zeros(len(tiles), num_classes + 1, dtype=torch.int64, device=tiles.device)
    counts.scatter_add_(1, tiles, torch.ones_like(tiles))
    most = counts.argmax(dim=1)
    return torch.where(most == num_classes, IGNORED, most)


@dataclass(frozen=True)
class DenseBatch:
    """Images of one size with their label maps.

    Args:
        features: (B, rows * columns, blocks, C), floating point, see :func:`.block_features.patch_features`.
        grid: Patches, (rows, columns).
        maps: Of each image, integers (H, W) of any size: classes, or 255.
    """

    features: Tensor
    grid: tuple[int, int]
    maps: Sequence[Tensor]


DenseSplit = Callable[[], Iterable[DenseBatch]]  # one pass over the images of a split, always in the same order


@dataclass(frozen=True)
class PatchBank:
    """Labelled patches to learn from.

    Args:
        features: float16 (n, blocks, C).
        labels: int64 (n,) in [0, K).
        num_classes: Number of classes K.
    """

    features: Tensor
    labels: Tensor
    num_classes: int


def draw_patches(split: DenseSplit, patch_size: tuple[int, int], num_classes: int, most: int, seed: int) -> PatchBank:
    """Labelled patches of a split, at most so many, all with the same chance, in one pass and whatever the size of the batches.

    Each patch draws a number, and those with the lowest are kept. While images pass by, `2 * most` patches at most are held, and those of
    one batch: 2 * blocks * C bytes each. Where not all are kept the log tells how many are.

    Args:
        split: The images.
        patch_size: (h, w) in pixels.
        num_classes: Number of classes K.
        most: How many patches are kept.
        seed: Of the draw.

    Raises:
        DataError: No patch has a label.
    """
    random = np.random.default_rng(seed)
    kept: list[tuple[Tensor, ...]] = []  # features, labels, and the numbers drawn, of each batch
    bound, count = 1.0, 0
    for batch in split():
        labels = torch.cat([patch_labels(one, batch.grid, patch_size, num_classes) for one in batch.maps]).cpu()
        drawn = torch.from_numpy(random.random(len(labels)))
        count += int((labels != IGNORED).sum())
        chosen = (labels != IGNORED) & (drawn < bound)
        features = batch.features.flatten(0, 1)[chosen.to(batch.features.device)].half().cpu()
        kept.append((features, labels[chosen], drawn[chosen]))
        if sum(map(len, (part for *_, part in kept))) > 2 * most:
            kept, bound = lowest(kept, most)
    if not count:
        raise DataError('No patch of the training split has a label: all pixels of its label maps are ignored (255)')
    kept, _ = lowest(kept, most)
    features, labels, _ = map(torch.cat, zip(*kept, strict=True))
    if count > len(labels):
        print_log(f'Learning from {len(labels):,} of {count:,} labelled patches, drawn at random (patches={most}, seed={seed})', 'current')
    return PatchBank(features, labels, num_classes)


def lowest(parts: list[tuple[Tensor, ...]], most: int) -> tuple[list[tuple[Tensor, ...]], float]:
    """Rows with the lowest numbers in the last tensor of the parts, at most so many, in their order; and the highest number kept."""
    drawn = torch.cat([part[-1] for part in parts])
    if len(drawn) <= most:
        return parts, 1.0
    bound = float(drawn.kthvalue(most).values)
    return [tuple(column[part[-1] <= bound] for column in part) for part in parts], bound


Scorer = Callable[[Tensor], Tensor]


def areas_of(split: DenseSplit, scorer: Scorer, num_classes: int, device: str | torch.device = 'cpu') -> np.ndarray:
    """Predict the label maps of a split by several models at once, in one pass.

    Args:
        split: The images.
        scorer: A function of patch features (n, blocks, C) that gives the scores of S models, (S, n, K).
        num_classes: Number of classes K.
        device: Where to compute.

    Returns:
        int64 (S, N, 3, K), see :func:`mmcae.evaluation.metrics.class_areas`.
    """
    found: list[Tensor] = []
    for batch in split():
        together = max(1, CHUNK // batch.features.shape[1])
        maps = iter(batch.maps)
        for part in batch.features.split(together):
            scores = scorer(part.to(device).float().flatten(0, 1)).unflatten(1, (len(part), *batch.grid)).permute(1, 0, 4, 2, 3)
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

    Features are those of the last block.

    Args:
        bank: Patches of the training split.
        val, test: The other splits.
        k: Numbers of neighbours to choose from; those beyond the size of the bank count as all of it.
        device: Where to compute.

    Returns:
        The areas of the test split, see :func:`areas_of`, and what was chosen.
    """
    known, labels = bank.features[:, -1].to(device), bank.labels.to(device)
    counts = sorted({min(count, len(known)) for count in k})

    def scorer(queries: Tensor, counts: Sequence[int]) -> Tensor:
        return torch.stack(list(knn_scores(queries[:, -1], known, labels, bank.num_classes, counts, float('inf')).values()))

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
    blocks: Sequence[int] = BLOCKS,
    device: str | torch.device = 'cpu',
    **settings,
) -> tuple[np.ndarray, str]:
    """One linear layer on standardised patch features, trained on patch labels; rate and blocks are chosen on the validation split.

    Args:
        bank: Patches of the training split.
        val, test: The other splits.
        rates: Learning rates to choose from.
        blocks: Numbers of last blocks to choose from, side by side; those beyond what the features hold count as all.
        device: Where to compute.
        **settings: Of :func:`mmcae.evaluation.sweep.train_heads`.

    Returns:
        The areas of the test split, see :func:`areas_of`, and what was chosen.
    """
    features, labels = bank.features.to(device).float(), bank.labels.to(device)
    choices = features_for(features.shape[1], blocks=blocks, pools=(PATCHES,))
    heads = [head for feature in choices for head in heads_of(feature, features, labels, bank.num_classes, rates, **settings)]

    def scorer(queries: Tensor, heads: Sequence[Head]) -> Tensor:
        return torch.stack(list(logits_of(heads, queries)))

    best = heads[0]
    if len(heads) > 1:
        tried = areas_of(val, partial(scorer, heads=heads), bank.num_classes, device)
        best = heads[max(range(len(heads)), key=lambda number: miou_of(tried[number]))]
    (areas,) = areas_of(test, partial(scorer, heads=[best]), bank.num_classes, device)
    return areas, str(best)
