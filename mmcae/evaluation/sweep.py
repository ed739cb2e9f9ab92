"""The linear probe over many learning rates and features at once, so that one badly chosen learning rate decides nothing."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.errors import ConfigError
from .linear import LinearModel, Standardization

RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
BLOCKS = (1, 4)  # as DINOv2 has them: the last block, and the last four side by side
POOLS = ('cls', 'mean', 'both')
PATCHES = 'patches'
MOMENTUM = 0.9


@dataclass(frozen=True)
class Feature:
    """Which of an encoder's tokens a probe reads.

    Args:
        blocks: The last so many blocks, side by side.
        pool: Of whole images: 'cls', the cls token; 'mean', the mean over the patches; 'both' side by side. 'patches': of single patches.
    """

    blocks: int = 1
    pool: str = 'cls'

    def __str__(self):
        return f'{self.pool} of the last block' if self.blocks == 1 else f'{self.pool} of the last {self.blocks} blocks'

    def of(self, features: Tensor) -> Tensor:
        """(N, blocks kept, 2, C), blocks in their order, cls and mean, -> (N, D); of single patches (N, blocks kept, C) -> (N, D)."""
        kept = features[:, -self.blocks :]
        kept = kept if self.pool in ('both', PATCHES) else kept[:, :, POOLS.index(self.pool)]
        return kept.flatten(1)


def features_for(blocks_kept: int, has_cls: bool = True, blocks: Sequence[int] = BLOCKS, pools: Sequence[str] = POOLS) -> list[Feature]:
    """The features that a sweep tries.

    Args:
        blocks_kept: How many blocks there are features of.
        has_cls: The encoder has a cls token.
        blocks: Numbers of last blocks to read; those beyond `blocks_kept` count as all there are.
        pools: Of 'cls', 'mean', 'both'; or 'patches'.

    Raises:
        ConfigError: An unknown pool, or a number of blocks below 1.
    """
    known = (*POOLS, PATCHES)
    wrong = [pool for pool in pools if pool not in known]
    if wrong or not pools or not blocks or min(blocks) < 1:
        raise ConfigError(f'A sweep over blocks={list(blocks)} and pools={list(pools)}: blocks are 1 or more, pools are of {known}')
    counts = sorted({min(count, blocks_kept) for count in blocks})
    return [Feature(count, pool) for count in counts for pool in (pools if has_cls else ('mean',))]


def train_heads(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    rates: Sequence[float] = RATES,
    epochs: float = 10,
    min_steps: int = 1000,
    batch_size: int = 1024,
    seed: int = 0,
) -> list[LinearModel]:
    """One linear classifier per learning rate, trained on the same batches by SGD with momentum 0.9 and a cosine schedule.

    All of them are one matrix product; the result of each is that of training it alone.

    Args:
        features: (N, D), standardised.
        labels: int64 (N,).
        num_classes: Number of classes K.
        rates: Learning rates.
        epochs, min_steps: Steps are those of so many passes over the features, but `min_steps` at least.
        batch_size: Features per step, all of them where there are fewer.
        seed: Of the order of the features. Weights start at zero.

    Returns:
        A classifier for each rate.

    Raises:
        ConfigError: Rates that are not positive, or numbers below 1.
    """
    if not rates or min(rates) <= 0 or min_steps < 1 or batch_size < 1:
        raise ConfigError(f'A linear probe with rates={list(rates)}, min_steps={min_steps}, batch_size={batch_size}: all must be above 0')
    count, width = features.shape
    batch_size = min(batch_size, count)
    steps = max(min_steps, round(epochs * count / batch_size))
    weight = features.new_zeros(len(rates), num_classes, width)
    bias = features.new_zeros(len(rates), num_classes)
    parts = (weight, bias)
    velocity = tuple(map(torch.zeros_like, parts))
    rate = features.new_tensor(list(rates))
    schedule = 0.5 * (1 + torch.cos(torch.pi * torch.arange(steps, dtype=torch.float64) / steps))
    for step, index in enumerate(batches(count, batch_size, steps, seed)):
        index = index.to(features.device)
        batch, truth = features[index], labels[index]
        logits = F.linear(batch, weight.flatten(0, 1), bias.flatten()).unflatten(1, (len(rates), num_classes))
        # The gradient of the mean cross entropy.
        error = (logits.softmax(dim=-1) - F.one_hot(truth, num_classes)[:, None]) / len(batch)
        gradients = ((error.flatten(1).T @ batch).view_as(weight), error.sum(dim=0))
        for part, speed, gradient in zip(parts, velocity, gradients, strict=True):
            speed.mul_(MOMENTUM).add_(gradient)
            part.sub_(speed * (rate * float(schedule[step])).view(-1, *[1] * (part.ndim - 1)))
    return [LinearModel(w, b) for w, b in zip(weight, bias, strict=True)]


def batches(count: int, batch_size: int, steps: int, seed: int) -> Iterable[Tensor]:
    """Indices of so many batches: pass after pass over all samples, each in a new order; the rest of a pass is left out."""
    generator = torch.Generator().manual_seed(seed)
    per_pass = count // batch_size
    for step in range(steps):
        if step % per_pass == 0:
            order = torch.randperm(count, generator=generator)
        yield order[step % per_pass * batch_size :][:batch_size]


@dataclass(frozen=True)
class Head:
    """A linear classifier out of a sweep.

    Attributes:
        feature: What it reads.
        rate: Its learning rate.
        at_edge: Its rate is the lowest or highest of the sweep, so that a better one may lie outside.
        model: Reads standardised features.
        standardization: Of the training features.
    """

    feature: Feature
    rate: float
    at_edge: bool
    model: LinearModel
    standardization: Standardization

    def __call__(self, features: Tensor) -> Tensor:
        """Features as the feature takes them -> logits (N, K)."""
        return self.model(self.standardization(self.feature.of(features)))

    def __str__(self):
        return f'{self.feature}, lr {self.rate:g}{" (end of the sweep)" if self.at_edge else ""}'


def heads_of(
    feature: Feature, features: Tensor, labels: Tensor, num_classes: int, rates: Sequence[float] = RATES, **settings
) -> list[Head]:
    """A linear classifier on one feature for every learning rate.

    Args:
        feature: What they read.
        features: As it takes them.
        labels: int64 (N,).
        num_classes: Number of classes.
        rates: Learning rates.
        **settings: Of :func:`train_heads`.
    """
    inputs = feature.of(features)
    standardization = Standardization.of(inputs)
    models = train_heads(standardization(inputs), labels, num_classes, rates, **settings)
    ends = (0, len(rates) - 1) if len(rates) > 1 else ()
    return [
        Head(feature, rate, number in ends, model, standardization) for number, (rate, model) in enumerate(zip(rates, models, strict=True))
    ]


def logits_of(heads: Sequence[Head], features: Tensor) -> Iterator[Tensor]:
    """What each of several heads makes of features, (N, K); heads of one feature in a row share its standardisation."""
    for _, several in groupby(heads, key=lambda head: id(head.standardization)):
        first, *others = several
        inputs = first.standardization(first.feature.of(features))
        yield from (head.model(inputs) for head in (first, *others))


def linear_sweep(
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    num_classes: int,
    choices: Sequence[Feature],
    rates: Sequence[float] = RATES,
    **settings,
) -> Head:
    """Train a linear classifier for every feature and learning rate; the one with the best top-1 accuracy on the validation split.

    Args:
        train, val: Features (N, blocks, 2, C), see :class:`Feature`, and labels int64 (N,) of each split.
        num_classes: Number of classes.
        choices: Features to try.
        rates: Learning rates to try.
        **settings: Of :func:`train_heads`.
    """
    best = None
    for feature in choices:
        heads = heads_of(feature, *train, num_classes, rates, **settings)
        for head, logits in zip(heads, logits_of(heads, val[0]), strict=True):
            score = top1(logits, val[1])
            if best is None or score > best[0]:
                best = score, head
    return best[1]


def top1(logits: Tensor, labels: Tensor) -> float:
    """Share of the samples (N, K) whose highest score is that of their label (N,)."""
    return float((logits.argmax(dim=-1) == labels).double().mean())
