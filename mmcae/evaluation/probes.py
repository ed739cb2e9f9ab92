"""Which probes the labels of a data set allow, and what each of them scores: functions of frozen features and labels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
import torch
from torch import Tensor

from ..utils.errors import ConfigError, nearest
from . import metrics
from .few_shot import few_shot
from .intervals import bootstrap_interval, interval_of_mean
from .knn import knn_scores
from .linear import Standardization, logistic_regression, ridge_regression
from .segmentation import NEIGHBOURS, DenseSplit, PatchBank, knn_segmentation, linear_segmentation
from .sweep import BLOCKS, RATES, Feature, features_for, linear_sweep, top1

STRENGTHS = tuple(10.0**exponent for exponent in range(-4, 3))  # C of logistic regression
SHOTS = (1, 5, 10)
ALPHAS = tuple(10.0**exponent for exponent in range(-2, 7))  # of ridge regression, for standardised features


@dataclass(frozen=True)
class Settings:
    """How probes are run.

    Args:
        blocks: The linear probes read the last so many blocks; each number is tried.
        k: Numbers of neighbours of the kNN classification; each is tried.
        patch_k: The same of the kNN segmentation.
        rates: Learning rates of the linear probes; each is tried.
        epochs, min_steps: Length of the linear probes, see :func:`.sweep.train_heads`.
        shots: Labels a class of few-shot classification. Defaults to those of 1, 5 and 10 that every class has for training.
        draws: How often they are drawn.
        patches: Of the training split, drawn at random, that the segmentation probes learn from.
        resamples: Of the bootstrap.
        level: Of confidence of all intervals.
        seed: Of everything drawn.
    """

    blocks: tuple[int, ...] = BLOCKS
    k: tuple[int, ...] = (10, 20)
    patch_k: tuple[int, ...] = NEIGHBOURS
    rates: tuple[float, ...] = RATES
    epochs: float = 10
    min_steps: int = 1000
    shots: tuple[int, ...] | None = None
    draws: int = 10
    patches: int = 100_000
    resamples: int = 1000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self):
        for one in fields(self):
            value = getattr(self, one.name)
            if value is None:
                continue
            if isinstance(value, list):
                object.__setattr__(self, one.name, tuple(value))
            values = value if isinstance(value, list | tuple) else [value]
            if not values or one.name not in ('seed', 'level') and min(values) <= 0:
                raise ConfigError(f'{one.name}={value} of the probes must be above 0')


@dataclass(frozen=True)
class Score:
    """One figure.

    Attributes:
        probe: Such as 'knn'.
        metric: Such as 'top-1'.
        value: In [0, 1] for shares; in the units of the labels for errors.
        low, high: Interval, over groups or images of the test split; over draws for few-shot classification.
        choice: What was chosen on the validation split.
    """

    probe: str
    metric: str
    value: float
    low: float
    high: float
    choice: str = ''

    def to_dict(self) -> dict:
        """Plain data, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class PooledSplit:
    """Features of whole images and their labels.

    Args:
        features: (N, blocks, 2, C), see :class:`.sweep.Feature`.
        labels: int64 (N,), bool (N, L) or floating point (N, T).
        groups: N names or numbers.
    """

    features: Tensor
    labels: Tensor
    groups: np.ndarray


PooledSplits = Mapping[str, PooledSplit]


def scored(probe: str, metric: str, statistic: metrics.Statistic, groups: np.ndarray, settings: Settings, choice: str = '') -> Score:
    """A score on the test split with its interval over groups."""
    value = statistic(np.ones(len(groups)))
    low, high = bootstrap_interval(statistic, groups, settings.level, settings.resamples, settings.seed)
    return Score(probe, metric, value, low, high, choice)


# ---------------------------------------------------------------- one class for each image


def knn(splits: PooledSplits, names: Sequence[str], has_cls: bool, settings: Settings) -> list[Score]:
    """kNN classification; feature (cls or mean of the last block) and k are chosen on the validation split."""
    train, test = splits['train'], splits['test']
    (feature, count), _ = chosen_neighbours(splits, names, has_cls, settings)
    scores = knn_scores(feature.of(test.features), feature.of(train.features), train.labels, len(names), [count])[count]
    right = (scores.argmax(dim=1) == test.labels).cpu()
    return [scored('knn', 'top-1', metrics.mean_of(right), test.groups, settings, f'{feature}, k = {count}')]


def chosen_neighbours(splits: PooledSplits, names, has_cls: bool, settings: Settings) -> tuple[tuple[Feature, int], float]:
    """Feature and number of neighbours that are best on the validation split, and their accuracy."""
    train, val = splits['train'], splits['val']
    counts = sorted({min(count, len(train.labels)) for count in settings.k})
    found = None
    for feature in features_for(1, has_cls, pools=('cls', 'mean')):
        scores = knn_scores(feature.of(val.features), feature.of(train.features), train.labels, len(names), counts)
        for count, score in scores.items():
            accuracy = top1(score, val.labels)
            if found is None or accuracy > found[1]:
                found = (feature, count), accuracy
    return found


def linear(splits: PooledSplits, names: Sequence[str], has_cls: bool, settings: Settings) -> list[Score]:
    """Linear classification; feature and learning rate are chosen on the validation split."""
    train, val, test = (splits[name] for name in ('train', 'val', 'test'))
    choices = features_for(train.features.shape[1], has_cls, settings.blocks)
    best = linear_sweep(
        (train.features, train.labels),
        (val.features, val.labels),
        len(names),
        choices,
        settings.rates,
        epochs=settings.epochs,
        min_steps=settings.min_steps,
        seed=settings.seed,
    )
    right = (best(test.features).argmax(dim=1) == test.labels).cpu()
    return [scored('linear', 'top-1', metrics.mean_of(right), test.groups, settings, str(best))]


def few_labels(splits: PooledSplits, names: Sequence[str], has_cls: bool, settings: Settings) -> list[Score]:
    """The nearest class mean with few labels; its feature is the one that kNN is better with on the validation split."""
    train, test = splits['train'], splits['test']
    (feature, _), _ = chosen_neighbours(splits, names, has_cls, settings)
    known, asked = (feature.of(train.features), train.labels), (feature.of(test.features), test.labels)
    least = int(torch.bincount(train.labels, minlength=len(names)).min())
    scores = []
    for shots in settings.shots or [shots for shots in SHOTS if shots <= least]:
        accuracies = few_shot(known, asked, len(names), shots, settings.draws, settings.seed, names)
        value, low, high = interval_of_mean(accuracies, settings.level)
        scores.append(Score(f'few_shot_{shots}', 'top-1', value, low, high, str(feature)))
    return scores


# ---------------------------------------------------------------- several labels, and numbers


def tags(splits: PooledSplits, names: Sequence[str], has_cls: bool, settings: Settings) -> list[Score]:
    """A logistic regression for each label; feature and regularisation are chosen on the validation split."""

    def fit(features: Tensor, labels: Tensor) -> list:
        return [logistic_regression(features, labels, strength) for strength in STRENGTHS]

    def val_score(predicted: Tensor, labels: Tensor) -> float:
        return metrics.mean_average_precision(predicted.cpu(), labels.cpu())(np.ones(len(labels)))

    predicted, choice = chosen_model(splits, has_cls, settings, fit, val_score, [f'C = {strength:g}' for strength in STRENGTHS])
    test = splits['test']
    statistic = metrics.mean_average_precision(predicted.cpu(), test.labels.cpu())
    return [scored('tags', 'mAP', statistic, test.groups, settings, choice)]


def numbers(splits: PooledSplits, names: Sequence[str], has_cls: bool, settings: Settings) -> list[Score]:
    """Ridge regression; feature and regularisation are chosen on the validation split."""
    train, test = splits['train'], splits['test']
    scale = Standardization.of(train.labels.double())  # so that no target decides by its unit

    def fit(features: Tensor, labels: Tensor) -> list:
        return ridge_regression(features, scale(labels.double()), ALPHAS)

    def val_score(predicted: Tensor, labels: Tensor) -> float:
        return metrics.r_squared(predicted.cpu(), scale(labels.double()).cpu())(np.ones(len(labels)))

    predicted, choice = chosen_model(splits, has_cls, settings, fit, val_score, [f'alpha = {alpha:g}' for alpha in ALPHAS])
    spread = torch.where(scale.std.isinf(), 0.0, scale.std)
    predicted, truth = (predicted.double() * spread + scale.mean).cpu(), test.labels.cpu()
    return [
        scored('numbers', 'R2', metrics.r_squared(predicted, truth), test.groups, settings, choice),
        scored('numbers', 'MAE', metrics.mean_absolute_error(predicted, truth), test.groups, settings, choice),
    ]


def chosen_model(
    splits: PooledSplits,
    has_cls: bool,
    settings: Settings,
    fit: Callable[[Tensor, Tensor], list],
    val_score: Callable[[Tensor, Tensor], float],
    about: Sequence[str],
) -> tuple[Tensor, str]:
    """Fit models on every feature, choose one on the validation split, and predict the test split by it.

    Returns:
        Predictions (N, T), and what was chosen.
    """
    train, val, test = (splits[name] for name in ('train', 'val', 'test'))
    found = None
    for feature in features_for(train.features.shape[1], has_cls, settings.blocks):
        inputs = feature.of(train.features)
        scale = Standardization.of(inputs)
        asked = scale(feature.of(val.features))
        for text, model in zip(about, fit(scale(inputs), train.labels), strict=True):
            value = val_score(model(asked), val.labels)
            if found is None or value > found[0] or found[0] != found[0]:
                found = value, feature, scale, model, text
    _, feature, scale, model, text = found
    return model(scale(feature.of(test.features))), f'{feature}, {text}'


# ---------------------------------------------------------------- a class for each pixel


def knn_maps(
    bank: PatchBank, val: DenseSplit, test: DenseSplit, groups: np.ndarray, settings: Settings, device: str | torch.device
) -> list[Score]:
    """kNN segmentation, see :func:`.segmentation.knn_segmentation`."""
    areas, choice = knn_segmentation(bank, val, test, settings.patch_k, device)
    return map_scores('knn_segmentation', areas, groups, settings, choice)


def linear_maps(
    bank: PatchBank, val: DenseSplit, test: DenseSplit, groups: np.ndarray, settings: Settings, device: str | torch.device
) -> list[Score]:
    """Linear segmentation, see :func:`.segmentation.linear_segmentation`."""
    length = dict(epochs=settings.epochs, min_steps=settings.min_steps, seed=settings.seed)
    areas, choice = linear_segmentation(bank, val, test, settings.rates, settings.blocks, device, **length)
    return map_scores('linear_segmentation', areas, groups, settings, choice)


def map_scores(probe: str, areas: np.ndarray, groups: np.ndarray, settings: Settings, choice: str) -> list[Score]:
    """mIoU and pixel accuracy."""
    kinds = {'mIoU': metrics.mean_iou(areas), 'pixel accuracy': metrics.pixel_accuracy(areas)}
    return [scored(probe, metric, statistic, groups, settings, choice) for metric, statistic in kinds.items()]


# ---------------------------------------------------------------- what there is

# By the kind of labels, see mmcae.datasets.sources.labelled_images.
POOLED = {'classes': dict(knn=knn, linear=linear, few_shot=few_labels), 'tags': dict(tags=tags), 'numbers': dict(numbers=numbers)}
DENSE = {'label_maps': dict(knn_segmentation=knn_maps, linear_segmentation=linear_maps)}
PROBES = {name: probe for by_name in (*POOLED.values(), *DENSE.values()) for name, probe in by_name.items()}


def probes_for(kinds: Sequence[str], names: Sequence[str] | None = None) -> dict[str, dict[str, Callable]]:
    """The probes that labels allow, by the kind of labels; with `names` these alone.

    Raises:
        ConfigError: There is no probe of such a name.
    """
    for name in names or ():
        if name not in PROBES:
            raise ConfigError(f'There is no probe {name!r}' + (nearest(name, PROBES) or f'; there are {", ".join(PROBES)}'))
    allowed = {kind: by_name for kind, by_name in {**POOLED, **DENSE}.items() if kind in kinds}
    return {kind: {name: probe for name, probe in by_name.items() if not names or name in names} for kind, by_name in allowed.items()}
