"""Scores of predictions that a bootstrap can weight: each sample counts as often as its weight says."""

from collections.abc import Callable

import numpy as np
import torch
from sklearn.metrics import average_precision_score, r2_score
from torch import Tensor

IGNORED = 255  # pixels of label maps that are neither learnt nor scored

Statistic = Callable[[np.ndarray], float]


def mean_of(values: Tensor | np.ndarray) -> Statistic:
    """The weighted mean of a value for each sample (N,), such as whether it was classified right."""
    values = np.asarray(values, dtype=np.float64)
    return lambda weights: float(values @ weights / weights.sum())


def class_areas(truth: Tensor, predicted: Tensor, num_classes: int) -> Tensor:
    """What mIoU is made of, for one image.

    Args:
        truth: Integers (H, W): classes, or 255 where a pixel is not scored.
        predicted: Integers (H, W): classes.
        num_classes: Number of classes K.

    Returns:
        int64 (3, K): pixels of each class in both, in the truth, and in the prediction.
    """
    scored = truth != IGNORED
    truth, predicted = truth[scored].long(), predicted[scored].long()
    counts = [torch.bincount(part, minlength=num_classes) for part in (truth[truth == predicted], truth, predicted)]
    return torch.stack(counts)


def mean_iou(areas: Tensor | np.ndarray) -> Statistic:
    """Mean over classes of intersection over union, each of all images together, as mmseg and the benchmarks have it.

    Args:
        areas: (N, 3, K), see :func:`class_areas`. Classes that occur neither in the truth nor in a prediction are left out of the mean.
    """
    areas = np.asarray(areas, dtype=np.float64)

    def statistic(weights: np.ndarray) -> float:
        both, truth, predicted = np.tensordot(weights, areas, axes=1)
        union = truth + predicted - both
        return float(np.mean(both[union > 0] / union[union > 0])) if union.any() else float('nan')

    return statistic


def pixel_accuracy(areas: Tensor | np.ndarray) -> Statistic:
    """Share of the scored pixels whose class is right; `areas` as for :func:`mean_iou`."""
    areas = np.asarray(areas, dtype=np.float64)

    def statistic(weights: np.ndarray) -> float:
        both, truth, _ = np.tensordot(weights, areas, axes=1)
        return float(both.sum() / truth.sum()) if truth.any() else float('nan')

    return statistic


def mean_average_precision(scores: Tensor | np.ndarray, truth: Tensor | np.ndarray) -> Statistic:
    """Mean over labels of scikit-learn's average precision.

    Args:
        scores: (N, L), higher for samples that more likely have the label.
        truth: bool (N, L). Labels that no sample has are left out of the mean.
    """
    scores, truth = np.asarray(scores, dtype=np.float64), np.asarray(truth).astype(bool)

    def statistic(weights: np.ndarray) -> float:
        kept = weights > 0
        weights = weights[kept]
        columns = [label for label in range(truth.shape[1]) if truth[kept, label].any()]
        values = [average_precision_score(truth[kept, label], scores[kept, label], sample_weight=weights) for label in columns]
        return float(np.mean(values)) if values else float('nan')

    return statistic


def r_squared(predicted: Tensor | np.ndarray, truth: Tensor | np.ndarray) -> Statistic:
    """Mean over targets of scikit-learn's coefficient of determination; both (N, T)."""
    predicted, truth = np.asarray(predicted, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    return lambda weights: float(r2_score(truth, predicted, sample_weight=weights))


def mean_absolute_error(predicted: Tensor | np.ndarray, truth: Tensor | np.ndarray) -> Statistic:
    """Mean over samples and targets of the absolute difference; both (N, T)."""
    return mean_of(np.abs(np.asarray(predicted, dtype=np.float64) - np.asarray(truth, dtype=np.float64)).mean(axis=1))
