"""The probes of whole images from features to scores, against scikit-learn's estimators and the same choice by hand."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import average_precision_score, mean_absolute_error, r2_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from mmcae.evaluation.few_shot import few_shot
from mmcae.evaluation.probes import ALPHAS, STRENGTHS, PooledSplit, Settings, few_labels, knn, numbers, probes_for, tags
from mmcae.evaluation.sweep import features_for
from mmcae.utils.errors import ConfigError

SETTINGS = Settings(k=(3,), draws=4, resamples=50)
COUNTS = dict(train=80, val=50, test=60)


@pytest.fixture
def features():
    """For each split features of two blocks, cls and mean, of 5 channels in other units."""
    return {split: torch.randn(count, 2, 2, 5) * torch.tensor([1, 10, 0.1, 3, 1]) + 2 for split, count in COUNTS.items()}


def splits_of(features, labels_of):
    return {split: PooledSplit(part, labels_of(part), np.arange(len(part))) for split, part in features.items()}


def best_by_hand(splits, fit, strengths, score):
    """Predictions of the test split by the feature and the strength that score best on the validation split, the first of equal ones."""
    found = None
    for feature in features_for(2):
        parts = {split: feature.of(part.features).numpy() for split, part in splits.items()}
        scale = StandardScaler().fit(parts['train'])
        parts = {split: scale.transform(part) for split, part in parts.items()}
        for strength in strengths:
            predict = fit(parts['train'], splits['train'].labels.numpy(), strength)
            value = score(splits['val'].labels.numpy(), predict(parts['val']))
            if found is None or value > found[0] + 1e-9:
                found = value, predict(parts['test'])
    return found[1]


def test_tags_are_scikit_learns(features):
    splits = splits_of(features, lambda part: part[:, 1, 1, [0, 2, 4]] + torch.randn(len(part), 3) * part.std(dim=0)[1, 1, [0, 2, 4]] > 2.3)

    def fit(x, y, strength):
        models = [LogisticRegression(C=strength, tol=1e-8, max_iter=5000).fit(x, column) for column in y.T]
        return lambda asked: np.stack([model.decision_function(asked) for model in models], axis=1)

    theirs = best_by_hand(splits, fit, STRENGTHS, average_precision_score)
    (score,) = tags(splits, 'abc', True, SETTINGS)
    assert score.value == pytest.approx(average_precision_score(splits['test'].labels.numpy(), theirs), abs=2e-3)
    assert 0 < score.low < score.value < score.high < 1


def test_numbers_are_scikit_learns(features):
    def labels_of(part):
        noise = torch.randn(len(part), 2)
        return torch.stack((100 * part[:, 1, 0, 0] + 60 * noise[:, 0], 0.01 * part[:, 0, 1, 3] + 0.02 * noise[:, 1]), dim=1).double()

    splits = splits_of(features, labels_of)
    scale = StandardScaler().fit(splits['train'].labels.numpy())

    def fit(x, y, alpha):
        model = Ridge(alpha=alpha).fit(x, scale.transform(y))
        return lambda asked: scale.inverse_transform(model.predict(asked))

    theirs = best_by_hand(splits, fit, ALPHAS, r2_score)
    r2, error = numbers(splits, ['one', 'other'], True, SETTINGS)
    truth = splits['test'].labels.numpy()
    assert r2.value == pytest.approx(r2_score(truth, theirs), abs=1e-5) and r2.low < r2.value < r2.high
    assert error.value == pytest.approx(mean_absolute_error(truth, theirs), rel=1e-5)


def test_few_labels_and_neighbours(features):
    centres = 2 * torch.randn(4, 5)
    labels = {split: torch.arange(count) % 4 for split, count in COUNTS.items()}
    for split, part in features.items():
        part[:, 1, 1] = centres[labels[split]] + torch.randn(len(part), 5)
    splits = {split: PooledSplit(part, labels[split], np.arange(len(part))) for split, part in features.items()}
    (score,) = knn(splits, 'abcd', True, SETTINGS)
    known, asked = (splits[split].features[:, 1, 1] for split in ('train', 'test'))
    similar = KNeighborsClassifier(3, metric='cosine', weights=lambda distance: np.exp((distance[:, :1] - distance) / 0.07))
    assert score.choice == 'mean of the last block, k = 3'
    assert score.value == pytest.approx(similar.fit(known, labels['train']).score(asked, labels['test']))
    found = few_labels(splits, 'abcd', True, SETTINGS)
    assert [score.probe for score in found] == ['few_shot_1', 'few_shot_5', 'few_shot_10']
    for score, shots in zip(found, (1, 5, 10), strict=True):
        draws = few_shot((known, labels['train']), (asked, labels['test']), 4, shots, 4)
        interval = stats.t.interval(0.95, 3, loc=np.mean(draws), scale=stats.sem(draws))
        assert (score.value, score.low, score.high) == pytest.approx((np.mean(draws), *interval))
    assert found[0].value < found[-1].value


def test_probes_are_those_of_the_labels():
    assert {kind: list(probes) for kind, probes in probes_for(['tags', 'label_maps']).items()} == {
        'tags': ['tags'],
        'label_maps': ['knn_segmentation', 'linear_segmentation'],
    }
    with pytest.raises(ConfigError, match="no probe 'linea'.*linear"):
        probes_for(['classes'], ['linea'])
    for wrong in (dict(draws=0), dict(rates=()), dict(blocks=(1, 0)), dict(patches=-1)):
        with pytest.raises(ConfigError, match='must be above 0'):
            Settings(**wrong)
