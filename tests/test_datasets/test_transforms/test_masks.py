"""Masks: exact counts on any grid, and the same distribution as the authors' generator."""

import math
import random

import numpy as np
import pytest
from reference.masks import block_mask
from scipy.ndimage import label

from mmcae.datasets.transforms import BlockMaskGenerator, RandomMaskGenerator
from mmcae.utils.errors import ConfigError

# The recipes' masks: those of CAE, and those of CAE v2's small and tiny models.
COUNTS = (98, 49, 30)


@pytest.fixture(scope='module', params=COUNTS)
def count(request):
    return request.param


@pytest.fixture(scope='module')
def reference_masks(count):
    """4,000 masks of the reference; tests/test_reference.py compares it with the authors' own."""
    random.seed(1)
    return np.array([block_mask(14, 14, count, 16) for _ in range(4000)])


@pytest.fixture(scope='module')
def block_masks(count):
    """4,000 masks with the same settings."""
    generator = BlockMaskGenerator(14, count)
    random.seed(0)
    return np.stack([generator({})['mask'] for _ in range(4000)])


def components(mask, diagonal):
    return label(mask, np.ones((3, 3)) if diagonal else None)[1]


def boundary(mask):
    return (mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum()


def test_every_cell_is_masked_as_often_as_by_the_reference(reference_masks, block_masks):
    """Last row and column included; five standard errors of the difference between two samples of 4,000 masks."""
    expected, found = reference_masks.mean(0), block_masks.mean(0)
    assert np.abs(found - expected).max() < 5 * math.hypot(0.008, 0.008)
    edges = np.concatenate([expected[-1], expected[:, -1]])
    assert abs(np.concatenate([found[-1], found[:, -1]]).mean() - edges.mean()) < 0.015
    assert edges.mean() > 0.03


@pytest.mark.parametrize(
    'measure',
    [lambda m: components(m, False), lambda m: components(m, True), lambda m: components(~m, False), boundary],
    ids=['masked components', 'masked components, diagonally', 'visible components', 'boundary'],
)
def test_masks_have_the_shape_of_the_references(reference_masks, block_masks, measure):
    found, expected = (np.array([measure(mask) for mask in masks]) for masks in (block_masks, reference_masks))
    assert abs(found.mean() - expected.mean()) < 5 * expected.std() * math.sqrt(2 / 4000)
    assert abs(found.std() / expected.std() - 1) < 0.15


def test_count_is_exact(count, block_masks):
    assert set(block_masks.sum((1, 2))) == {count}
    assert block_masks.dtype == bool


@pytest.mark.parametrize(
    'grid, count, smallest, largest, aspect',
    [
        ((14, 14), 98, 16, None, (0.3, 1 / 0.3)),
        ((14, 14), 75, 4, 20, (0.5, 2)),
        ((7, 23), 100, 16, None, (0.3, 1 / 0.3)),
        ((42, 68), 1428, 16, 300, (0.3, 1 / 0.3)),
        ((4, 4), 8, 1, None, (0.3, 1 / 0.3)),
    ],
)
def test_equals_the_reference(grid, count, smallest, largest, aspect):
    generator = BlockMaskGenerator(grid, count, min_block=smallest, max_block=largest, aspect=aspect)
    for seed in range(10):
        random.seed(seed)
        expected = block_mask(*grid, count, smallest, largest, aspect)
        random.seed(seed)
        np.testing.assert_array_equal(generator({})['mask'], expected)


@pytest.mark.parametrize('grid', [14, (2, 30), (30, 2), (6, 9), (3, 3)])
@pytest.mark.parametrize('share', [0.1, 0.5, 0.9])
def test_both_kinds_count_exactly_on_any_grid(grid, share):
    rows, columns = (grid, grid) if isinstance(grid, int) else grid
    count = max(1, int(rows * columns * share))
    for generator in (BlockMaskGenerator(grid, count, min_block=1), RandomMaskGenerator(grid, num_masked=count)):
        for _ in range(20):
            mask = generator({})['mask']
            assert mask.shape == (rows, columns) and mask.dtype == bool and mask.sum() == count


@pytest.mark.parametrize('grid, ratio, count', [(14, 0.5, 98), (14, 0.75, 147), (10, 0.29, 29), (4, 0.4, 6), ((6, 9), 0.3, 16)])
def test_ratio_rounds_down(grid, ratio, count):
    assert RandomMaskGenerator(grid, ratio=ratio)({})['mask'].sum() == count


def test_random_masks_are_uniform():
    generator = RandomMaskGenerator((5, 7), num_masked=14)
    np.random.seed(0)
    masks = np.stack([generator({})['mask'].ravel() for _ in range(5000)]).astype(float)
    share = 14 / 35
    assert np.abs(masks.mean(0) - share).max() < 5 * math.sqrt(share * (1 - share) / 5000)
    off_diagonal = np.corrcoef(masks.T)[~np.eye(35, dtype=bool)]
    assert np.abs(off_diagonal + 1 / 34).max() < 5 / math.sqrt(5000)  # a fixed count leaves a correlation of -1 / (n - 1)


def test_same_seed_same_masks_and_no_two_alike():
    for generator in (BlockMaskGenerator(14, 98), RandomMaskGenerator(14, ratio=0.5)):
        draws = []
        for _ in range(2):
            random.seed(5)
            np.random.seed(5)
            draws.append(np.stack([generator({})['mask'] for _ in range(50)]))
        np.testing.assert_array_equal(*draws)
        assert len(np.unique(draws[0].reshape(50, -1), axis=0)) == 50


def test_building_a_generator_leaves_the_random_state_alone():
    random.seed(1)
    expected = random.random()
    random.seed(1)
    BlockMaskGenerator(14, 98)
    assert random.random() == expected


@pytest.mark.parametrize(
    'settings, message',
    [
        ({'grid': 14, 'num_masked': 197}, 'between 1 and 195.*got 197'),
        ({'grid': 14, 'num_masked': 196}, 'something visible'),
        ({'grid': (4, 5), 'num_masked': 0}, '4x5'),
        ({'grid': 0, 'num_masked': 1}, 'grid'),
    ],
)
@pytest.mark.parametrize('generator', [BlockMaskGenerator, RandomMaskGenerator])
def test_impossible_counts_are_refused(generator, settings, message):
    with pytest.raises(ConfigError, match=message):
        generator(**settings)


@pytest.mark.parametrize(
    'settings, message',
    [
        ({'grid': 3, 'num_masked': 8}, '3x3 grid .* lower min_block'),
        ({'grid': 14, 'num_masked': 98, 'aspect': (30, 40)}, 'no block fits'),
        ({'grid': 14, 'num_masked': 98, 'min_block': 0}, 'min_block'),
        ({'grid': 14, 'num_masked': 98, 'min_block': 20, 'max_block': 10}, 'max_block=10'),
        ({'grid': 14, 'num_masked': 98, 'aspect': (2, 1)}, 'aspect'),
    ],
)
def test_blocks_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        BlockMaskGenerator(**settings)


def test_random_masks_need_one_of_count_and_ratio():
    for settings in ({}, {'num_masked': 3, 'ratio': 0.5}):
        with pytest.raises(ConfigError, match='either num_masked or ratio'):
            RandomMaskGenerator(4, **settings)
    with pytest.raises(ConfigError, match='between 1 and 15'):
        RandomMaskGenerator(4, ratio=1.0)
