"""Scores and their intervals against scikit-learn, mmseg and slow, obvious implementations."""

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics

from mmcae.evaluation import metrics
from mmcae.evaluation.intervals import bootstrap_interval, interval_of_mean
from mmcae.utils.errors import ConfigError, DataError


@pytest.fixture
def maps():
    truth = torch.randint(0, 4, (6, 9, 7))
    predicted = torch.where(torch.rand(6, 9, 7) < 0.6, truth, torch.randint(0, 5, (6, 9, 7)))
    truth[torch.rand(6, 9, 7) < 0.1] = 255
    return truth, predicted


def test_mean_iou_is_mmsegs_and_scikit_learns(maps):
    from mmseg.evaluation import IoUMetric

    truth, predicted = maps
    areas = torch.stack([metrics.class_areas(*pair, 6) for pair in zip(truth, predicted, strict=True)])
    ones = np.ones(len(areas))
    scored = truth != 255
    # Class 4 is predicted only, class 5 occurs nowhere.
    wanted = sklearn_metrics.jaccard_score(truth[scored], predicted[scored], labels=range(5), average='macro', zero_division=0)
    assert metrics.mean_iou(areas)(ones) == pytest.approx(wanted)
    parts = [IoUMetric.intersect_and_union(one, other, 6, 255) for one, other in zip(predicted, truth, strict=True)]
    totals = [sum(part[number] for part in parts) for number in (0, 1)]
    theirs = (totals[0] / totals[1])[totals[1] > 0].mean()
    assert metrics.mean_iou(areas)(ones) == pytest.approx(float(theirs), abs=1e-6)
    assert metrics.pixel_accuracy(areas)(ones) == pytest.approx(float((truth == predicted)[scored].float().mean()))


@pytest.mark.parametrize('kind', ['mean_iou', 'pixel_accuracy', 'mean_average_precision', 'r_squared', 'mean_absolute_error'])
def test_a_weight_is_a_repetition(kind, maps):
    """Scores with whole numbers as weights are those of data in which samples are repeated."""
    random = np.random.default_rng(0)
    weights = np.array([0, 3, 1, 2, 0, 4])
    if kind in ('mean_iou', 'pixel_accuracy'):
        arguments = [torch.stack([metrics.class_areas(*pair, 5) for pair in zip(*maps, strict=True)]).numpy()]
    elif kind == 'mean_average_precision':
        arguments = [random.normal(size=(6, 3)), random.random((6, 3)) < 0.5]
    else:
        arguments = [random.normal(size=(6, 2)), random.normal(size=(6, 2))]
    make = getattr(metrics, kind)
    repeated = [np.repeat(argument, weights, axis=0) for argument in arguments]
    assert make(*arguments)(weights.astype(float)) == pytest.approx(make(*repeated)(np.ones(weights.sum())))


def test_average_precision_leaves_out_labels_that_no_sample_has():
    scores, truth = np.random.default_rng(1).normal(size=(20, 3)), np.zeros((20, 3), bool)
    truth[::3, 0] = truth[::4, 2] = True
    wanted = np.mean([sklearn_metrics.average_precision_score(truth[:, label], scores[:, label]) for label in (0, 2)])
    assert metrics.mean_average_precision(scores, truth)(np.ones(20)) == pytest.approx(wanted)


def test_bootstrap_over_groups_against_resampling_by_hand():
    random = np.random.default_rng(3)
    groups = np.repeat(np.arange(12), random.integers(1, 9, 12))
    right = groups % 3 == 0  # all samples of a group are alike
    low, high = bootstrap_interval(metrics.mean_of(right), groups, resamples=4000)
    slow = []
    for _ in range(4000):
        drawn = random.integers(0, 12, 12)
        slow.append(np.concatenate([right[groups == group] for group in drawn]).mean())
    assert np.percentile(slow, [2.5, 97.5]) == pytest.approx([low, high], abs=0.02)
    narrow = bootstrap_interval(metrics.mean_of(right), np.arange(len(right)), resamples=4000)
    assert high - low > 1.5 * (narrow[1] - narrow[0])


def test_bootstrap_without_groups_is_scipys():
    from scipy import stats

    values = np.random.default_rng(4).exponential(size=80)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=4000, method='percentile', rng=1).confidence_interval
    assert bootstrap_interval(metrics.mean_of(values), np.arange(80), resamples=4000) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_bootstrap_covers_the_truth():
    """Of intervals at 80 % about four in five hold the true mean."""
    random = np.random.default_rng(5)
    inside = 0
    for _ in range(200):
        low, high = bootstrap_interval(metrics.mean_of(random.normal(size=60)), np.arange(60), level=0.8, resamples=200)
        inside += low <= 0 <= high
    assert 140 <= inside <= 180


def test_interval_of_mean_is_students():
    from scipy import stats

    values = [0.61, 0.58, 0.66, 0.6]
    mean, low, high = interval_of_mean(values)
    wanted = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (mean, low, high) == pytest.approx((np.mean(values), *wanted))


def test_what_has_no_interval():
    with pytest.raises(DataError, match='All 4 samples to score belong to one group, slide 7'):
        bootstrap_interval(metrics.mean_of(np.ones(4)), ['slide 7'] * 4)
    with pytest.raises(ConfigError, match='One draw'):
        interval_of_mean([0.5])
    for level in (0, 1, 95):
        with pytest.raises(ConfigError, match='level'):
            interval_of_mean([0.5, 0.6], level)
