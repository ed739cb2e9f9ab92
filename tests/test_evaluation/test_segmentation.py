"""Segmentation from patch features against slow, obvious implementations."""

import collections

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier

from mmcae.evaluation.metrics import class_areas
from mmcae.evaluation.segmentation import (
    DenseSplit,
    PatchBank,
    areas_of,
    knn_segmentation,
    linear_segmentation,
    miou_of,
    patch_labels,
)
from mmcae.utils.errors import DataError

GRID, PATCH, CLASSES = (3, 4), (4, 4), 3


def test_the_most_frequent_label_of_a_patch():
    labels = torch.randint(0, CLASSES, (12, 16))
    labels[torch.rand(12, 16) < 0.3] = 255
    found = patch_labels(labels, GRID, PATCH, CLASSES).tolist()
    for number, label in enumerate(found):
        row, column = divmod(number, GRID[1])
        pixels = labels[4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten().tolist()
        counts = collections.Counter(pixels)
        assert label in [name for name, count in counts.items() if count == max(counts.values())]
        assert label == min(name for name, count in counts.items() if count == max(counts.values()))


def test_maps_of_other_sizes_are_resized_without_interpolation():
    labels = torch.randint(0, CLASSES, (12, 16))
    larger = labels.repeat_interleave(3, 0).repeat_interleave(3, 1)
    assert torch.equal(patch_labels(larger, GRID, PATCH, CLASSES), patch_labels(labels, GRID, PATCH, CLASSES))


@pytest.mark.parametrize('number', [3, 254, -1])
def test_numbers_that_are_no_class(number):
    labels = torch.zeros(12, 16, dtype=torch.int64)
    labels[2, 2] = number
    with pytest.raises(DataError, match=f'has the number {number}; classes are 0 to 2'):
        patch_labels(labels, GRID, PATCH, CLASSES)


@pytest.fixture
def splits():
    """A bank, a validation and a test split in which the label of a patch shows in its features."""
    centres = torch.randn(CLASSES, 6)

    def make(count):
        labels = torch.randint(0, CLASSES, (count, *GRID))
        features = centres[labels].flatten(1, 2) + 0.7 * torch.randn(count, 12, 6)
        maps = labels.repeat_interleave(4, 1).repeat_interleave(4, 2).clone()
        maps[torch.rand(maps.shape) < 0.05] = 255
        return DenseSplit(features, GRID, lambda: iter(maps)), labels.flatten()

    (train, labels), (val, _), (test, _) = make(10), make(6), make(7)
    labels[::9] = 255
    return PatchBank(train.features.flatten(0, 1), labels, CLASSES), val, test


def test_knn_segmentation_is_scikit_learns(splits):
    bank, val, test = splits
    areas, choice = knn_segmentation(bank, val, test, k=[5])
    # Double precision on both sides, since a tie of two neighbours decides about a vote.
    theirs = KNeighborsClassifier(5, metric='cosine').fit(bank.features.numpy(), bank.labels.numpy())
    slow = []
    for features, truth in zip(test.features, test.maps(), strict=True):
        votes = torch.from_numpy(theirs.predict_proba(features.numpy())).T.reshape(1, CLASSES, *GRID)
        slow.append(class_areas(truth, F.interpolate(votes, (12, 16), mode='bilinear', align_corners=False)[0].argmax(0), CLASSES))
    assert choice == 'k = 5'
    assert np.abs(areas - torch.stack(slow).numpy()).sum() <= 4  # a pixel in between, by rounding
    assert miou_of(areas) > 0.5


def test_k_is_chosen_on_the_validation_split(splits):
    bank, val, test = splits
    scores = {k: miou_of(knn_segmentation(bank, val, val, k=[k])[0]) for k in (1, 3, 10)}
    _, choice = knn_segmentation(bank, val, test, k=(1, 3, 10))
    assert choice == f'k = {max(scores, key=scores.get)}'
    assert knn_segmentation(bank, val, test, k=[10**6])[1] == f'k = {len(bank.features)}'


def test_linear_segmentation_learns_and_chooses_its_rate(splits):
    bank, val, test = splits
    settings = dict(min_steps=30, batch_size=40)
    scores = {rate: miou_of(linear_segmentation(bank, val, val, (rate,), **settings)[0]) for rate in (1e-4, 0.1, 3.0)}
    best = max(scores, key=scores.get)
    areas, choice = linear_segmentation(bank, val, test, tuple(scores), **settings)
    assert choice == f'lr {best:g}{"" if best == 0.1 else " (end of the sweep)"}'
    assert miou_of(areas) > 0.6
    assert np.array_equal(areas, linear_segmentation(bank, val, test, (best,), **settings)[0])


def test_ignored_patches_are_not_learnt_and_ignored_pixels_not_scored(splits):
    bank, val, test = splits
    assert 255 not in bank.labels and len(bank.features) < 120
    scored = sum(int((truth != 255).sum()) for truth in test.maps())
    areas, _ = knn_segmentation(bank, val, test, k=[1])
    assert areas[:, 1].sum() == areas[:, 2].sum() == scored


def test_all_models_at_once_are_each_alone(splits):
    _, val, _ = splits
    weights = torch.randn(2, CLASSES, 6)
    both = areas_of(val, lambda queries: queries @ weights.transpose(1, 2), CLASSES)
    for number in range(2):
        (alone,) = areas_of(val, lambda queries, number=number: (queries @ weights[number].T)[None], CLASSES)
        assert np.array_equal(alone, both[number])


def test_a_bank_without_labels():
    with pytest.raises(DataError, match='ignored'):
        PatchBank(torch.randn(4, 2), torch.full((4,), 255), 3)
