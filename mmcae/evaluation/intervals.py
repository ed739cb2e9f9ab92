"""How far a score can be trusted: intervals over draws, and over groups of samples that belong together."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from ..utils.errors import ConfigError, DataError
from .metrics import Statistic


def interval_of_mean(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Mean of independent draws and Student's confidence interval of it.

    Args:
        values: One score per draw, two at least.
        level: Of confidence, in (0, 1).

    Returns:
        Mean, lower end, upper end.

    Raises:
        ConfigError: One draw, or a level out of range.
    """
    check_level(level)
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        raise ConfigError('One draw has no interval: ask for 2 draws or more')
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def bootstrap_interval(
    statistic: Statistic, groups: Sequence | np.ndarray, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of a score under resampling of whole groups (patients, slides, scenes).

    Samples of one group are alike, so that resampling them one by one would give an interval that is too narrow. Where every sample is a
    group of its own, it is the ordinary bootstrap.

    Args:
        statistic: A score as a function of weights (N,), see :mod:`.metrics`. A resample for which it is NaN is left out.
        groups: N names or numbers.
        level: Of confidence, in (0, 1).
        resamples: How many.
        seed: Of the resampling.

    Returns:
        Lower and upper end.

    Raises:
        ConfigError: A level or number of resamples out of range.
        DataError: All samples are of one group.
    """
    check_level(level)
    if resamples < 2:
        raise ConfigError(f'resamples={resamples} must be at least 2')
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2:
        raise DataError(f'All {len(index)} samples to score belong to one group, {names[0]!s}: an interval over groups needs two or more')
    random = np.random.default_rng(seed)
    shares = np.full(len(names), 1 / len(names))
    scores = [statistic(random.multinomial(len(names), shares)[index].astype(np.float64)) for _ in range(resamples)]
    low, high = np.nanpercentile(scores, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def check_level(level: float):
    """Refuse what is no level of confidence."""
    if not 0 < level < 1:
        raise ConfigError(f'level={level} must lie between 0 and 1')
