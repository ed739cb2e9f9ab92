"""A few labels of any classification data set: balanced, the same every time, and no empty class."""

from collections import Counter

import pytest
from mmengine.registry import init_default_scope
from PIL import Image

from mmcae.registry import DATASETS
from mmcae.utils.errors import ConfigError

COUNTS = {'cat': 40, 'dog': 60, 'emu': 20}


@pytest.fixture
def tree(tmp_path):
    init_default_scope('mmpretrain')
    for name, count in COUNTS.items():
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.new('RGB', (4, 4)).save(tmp_path / name / f'{i:03d}.png')
    return dict(type='CustomDataset', data_root=str(tmp_path))


def subset(dataset, **kwargs):
    return DATASETS.build(dict(type='mmcae.LabelSubset', dataset=dataset, **kwargs))


def per_class(dataset):
    return Counter(dataset.CLASSES[label] for label in dataset.get_gt_labels())


def paths(dataset):
    return [dataset.get_data_info(i)['img_path'] for i in range(len(dataset))]


@pytest.mark.parametrize(
    'labels, expected',
    [
        (1.0, COUNTS),
        (0.1, {'cat': 4, 'dog': 6, 'emu': 2}),
        (0.5, {'cat': 20, 'dog': 30, 'emu': 10}),
        (30, {'cat': 10, 'dog': 10, 'emu': 10}),
        (32, {'cat': 11, 'dog': 11, 'emu': 10}),
        (3, {'cat': 1, 'dog': 1, 'emu': 1}),
    ],
)
def test_share_or_number_is_balanced(tree, labels, expected):
    dataset = subset(tree, labels=labels)
    assert per_class(dataset) == expected
    assert len(set(paths(dataset))) == len(dataset) == sum(expected.values())


def test_result_is_the_data_set_itself(tree):
    dataset = subset({**tree, 'pipeline': [dict(type='LoadImageFromFile')]}, labels=6)
    assert type(dataset).__name__ == 'CustomDataset'
    assert dataset.metainfo['classes'] == ('cat', 'dog', 'emu')
    assert dataset[0]['img'].shape == (4, 4, 3)
    assert paths(dataset) == sorted(paths(dataset))


def test_choice_is_fixed_drawn_by_the_seed_and_nested(tree):
    assert paths(subset(tree, labels=0.1)) == paths(subset(tree, labels=0.1))
    assert paths(subset(tree, labels=0.1)) != paths(subset(tree, labels=0.1, seed=1))
    assert set(paths(subset(tree, labels=0.1))) < set(paths(subset(tree, labels=0.5)))
    first_files = [path for path in paths(subset(tree, labels=0.1)) if int(path[-7:-4]) < 6]
    assert len(first_files) < 12  # drawn from all of a class, not from its beginning


@pytest.mark.parametrize(
    'labels, message',
    [
        (0.02, "asks for 0 of the 20 images of class 'emu'"),
        (2, "asks for 0 of the 20 images of class 'emu'"),
        (90, "asks for 30 of the 20 images of class 'emu'"),
        (0, 'asks for 0'),
        (-3, 'asks for -1'),
        (0.0, 'share'),
        (1.5, 'whole number'),
    ],
)
def test_empty_and_exhausted_classes_are_refused(tree, labels, message):
    with pytest.raises(ConfigError, match=message):
        subset(tree, labels=labels)


def test_class_without_any_image_is_refused(tree, tmp_path):
    (tmp_path / 'fox').mkdir()
    with pytest.raises(ConfigError, match="of the 0 images of class 'fox'"):
        subset(tree, labels=1.0)


def test_unlabelled_data_is_refused(tree):
    with pytest.raises(ConfigError, match='CustomDataset has no labels'):
        subset({**tree, 'with_label': False}, labels=0.5)
    with pytest.raises(ConfigError, match='ConcatDataset has no labels'):
        subset(dict(type='ConcatDataset', datasets=[tree]), labels=0.5)
