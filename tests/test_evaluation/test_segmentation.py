"""Segmentation from patch features against slow, obvious implementations."""

import collections

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier

from mmcae.evaluation.metrics import class_areas
from mmcae.evaluation.segmentation import (
    DenseBatch,
    PatchBank,
    areas_of,
    check_numbers,
    draw_patches,
    knn_segmentation,
    linear_segmentation,
    lowest,
    miou_of,
    patch_labels,
)
from mmcae.utils.errors import ConfigError, DataError

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
    labels = torch.full((12, 16), 255)
    check_numbers(labels, CLASSES, 'a.png')
    labels[2, 2] = number
    with pytest.raises(DataError, match=f'a.png has the number {number}; classes are 0 to 2'):
        check_numbers(labels, CLASSES, 'a.png')


def in_batches(features, maps, sizes):
    """A split whose images come in batches of these sizes."""
    assert sum(sizes) == len(features)
    return lambda: (DenseBatch(part, GRID, labels) for part, labels in zip(features.split(sizes), maps.split(sizes), strict=True))


@pytest.fixture
def splits():
    """A bank, a validation and a test split of two blocks, in which the label of a patch shows in the features of the second."""
    centres = torch.randn(CLASSES, 6)

    def make(*sizes):
        labels = torch.randint(0, CLASSES, (sum(sizes), *GRID))
        features = torch.stack((torch.randn(sum(sizes), 12, 6), centres[labels].flatten(1, 2) + 0.7 * torch.randn(sum(sizes), 12, 6)), 2)
        maps = labels.repeat_interleave(4, 1).repeat_interleave(4, 2).clone()
        maps[torch.rand(maps.shape) < 0.05] = 255
        return in_batches(features, maps, sizes), features, labels

    (_, features, labels), (val, *_), (test, *_) = make(10), make(4, 2), make(3, 3, 1)
    return PatchBank(features.flatten(0, 1), labels.flatten(), CLASSES), val, test


def test_knn_segmentation_is_scikit_learns(splits):
    bank, val, test = splits
    areas, choice = knn_segmentation(bank, val, test, k=[5])
    # Double precision on both sides, since a tie of two neighbours decides about a vote.
    theirs = KNeighborsClassifier(5, metric='cosine').fit(bank.features[:, 1].numpy(), bank.labels.numpy())
    slow = []
    images = [(features, truth) for batch in test() for features, truth in zip(batch.features[:, :, 1], batch.maps, strict=True)]
    for features, truth in images:
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
    settings = dict(blocks=(1,), min_steps=30, batch_size=40)
    scores = {rate: miou_of(linear_segmentation(bank, val, val, (rate,), **settings)[0]) for rate in (1e-4, 0.1, 3.0)}
    best = max(scores, key=scores.get)
    areas, choice = linear_segmentation(bank, val, test, tuple(scores), **settings)
    assert choice == f'patches of the last block, lr {best:g}{"" if best == 0.1 else " (end of the sweep)"}'
    assert miou_of(areas) > 0.6
    assert np.array_equal(areas, linear_segmentation(bank, val, test, (best,), **settings)[0])


def test_the_blocks_that_tell_the_labels_are_chosen(splits):
    """Of a single block and both side by side; alone each is what it is without the other."""
    bank, val, test = splits
    settings = dict(rates=(0.05,), min_steps=30, batch_size=40)
    shifted = PatchBank(bank.features.flip(1), bank.labels, CLASSES)  # the label shows in the first block now

    def flipped(split):
        return lambda: (DenseBatch(batch.features.flip(2), batch.grid, batch.maps) for batch in split())

    areas, choice = linear_segmentation(shifted, flipped(val), flipped(test), blocks=(1, 4), **settings)
    assert choice == 'patches of the last 2 blocks, lr 0.05'
    assert miou_of(areas) > miou_of(linear_segmentation(shifted, flipped(val), flipped(test), blocks=(1,), **settings)[0]) + 0.1
    both = linear_segmentation(bank, val, test, blocks=(2,), **settings)[0]
    side_by_side = PatchBank(bank.features.flatten(1)[:, None], bank.labels, CLASSES)

    def joined(split):
        return lambda: (DenseBatch(batch.features.flatten(2)[:, :, None], batch.grid, batch.maps) for batch in split())

    assert np.array_equal(both, linear_segmentation(side_by_side, joined(val), joined(test), blocks=(1,), **settings)[0])
    with pytest.raises(ConfigError, match='blocks'):
        linear_segmentation(bank, val, test, blocks=(0,), **settings)


def test_ignored_pixels_are_not_scored(splits):
    bank, val, test = splits
    scored = sum(int((truth != 255).sum()) for batch in test() for truth in batch.maps)
    areas, _ = knn_segmentation(bank, val, test, k=[1])
    assert areas[:, 1].sum() == areas[:, 2].sum() == scored


def test_all_models_at_once_are_each_alone(splits):
    _, val, _ = splits
    weights = torch.randn(2, CLASSES, 6)
    both = areas_of(val, lambda queries: queries[:, 1] @ weights.transpose(1, 2), CLASSES)
    for number in range(2):
        (alone,) = areas_of(val, lambda queries, number=number: (queries[:, 1] @ weights[number].T)[None], CLASSES)
        assert np.array_equal(alone, both[number])


# ---------------------------------------------------------------- what is learnt from


@pytest.fixture
def images():
    """Features (40, 12, 1, 2) of the number of each patch, and maps of one label a patch, a third of them ignored."""
    labels = torch.randint(0, CLASSES, (40, *GRID))
    labels[torch.rand(labels.shape) < 0.3] = 255
    features = torch.arange(480.0).view(40, 12, 1, 1).expand(-1, -1, -1, 2)
    return features, labels.repeat_interleave(4, 1).repeat_interleave(4, 2), labels.flatten()


@pytest.mark.parametrize('most', [1, 50, 10**6])
def test_patches_are_drawn_by_the_lowest_numbers_in_any_batches(images, most):
    features, maps, labels = images
    drawn = np.random.default_rng(3).random(480)
    labelled = np.flatnonzero(labels.numpy() != 255)
    wanted = np.sort(labelled[np.argsort(drawn[labelled])][:most])
    for sizes in ([40], [1] * 40, [7, 3, 20, 10]):
        bank = draw_patches(in_batches(features, maps, sizes), PATCH, CLASSES, most, seed=3)
        assert bank.features[:, 0, 1].tolist() == wanted.tolist()
        assert torch.equal(bank.labels, labels[wanted])
    if most == 50:
        assert draw_patches(in_batches(features, maps, [40]), PATCH, CLASSES, most, seed=4).labels.tolist() != bank.labels.tolist()


def test_what_is_not_learnt_from_is_told(images, monkeypatch):
    told = []
    monkeypatch.setattr('mmcae.evaluation.segmentation.print_log', lambda text, *_: told.append(text))
    features, maps, labels = images
    draw_patches(in_batches(features, maps, [40]), PATCH, CLASSES, 480, seed=0)
    assert not told
    draw_patches(in_batches(features, maps, [40]), PATCH, CLASSES, 100, seed=0)
    assert told == [f'Learning from 100 of {int((labels != 255).sum())} labelled patches, drawn at random (patches=100, seed=0)']


def test_no_more_than_twice_the_patches_are_held(images, monkeypatch):
    held = []

    def spy(parts, most):
        held.append(sum(len(part[-1]) for part in parts))
        return lowest(parts, most)

    monkeypatch.setattr('mmcae.evaluation.segmentation.lowest', spy)
    features, maps, _ = images
    draw_patches(in_batches(features, maps, [1] * 40), PATCH, CLASSES, 20, seed=0)
    assert max(held) <= 2 * 20 + 12


def test_a_split_without_labels(images):
    features, maps, _ = images
    with pytest.raises(DataError, match='ignored'):
        draw_patches(in_batches(features, torch.full_like(maps, 255), [40]), PATCH, CLASSES, 10, seed=0)
