"""The fingerprint of a data set tells which images it has and in which order, wherever they lie."""

import json
import shutil

import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset, ClassBalancedDataset, ConcatDataset, RepeatDataset
from mmpretrain.datasets import CustomDataset, KFoldDataset
from PIL import Image
from torch.utils.data import Dataset, Subset, TensorDataset

import mmcae.datasets
from mmcae.datasets.sources.fingerprint import below_common_folder, fingerprint


@pytest.fixture
def folder(image_folder):
    return image_folder('a', classes=('cat', 'dog', 'owl'), count=3)


def images(folder, **settings):
    return mmcae.datasets.ImageFolder(data_root=str(folder), **settings)


def labelled(folder, **settings):
    return CustomDataset(data_root=str(folder), pipeline=[], **settings)


@pytest.mark.parametrize('make', [images, labelled])
def test_it_is_that_of_the_files_and_not_of_their_place(folder, tmp_path, make):
    elsewhere = shutil.copytree(folder, tmp_path / 'elsewhere' / 'of_another_name')
    assert fingerprint(make(folder)) == fingerprint(make(elsewhere)) == fingerprint(make(elsewhere, lazy_init=True))
    assert len(fingerprint(make(folder))) == 16


@pytest.mark.parametrize('make', [images, labelled])
def test_files_that_come_go_or_change_their_name(folder, make):
    seen = {fingerprint(make(folder))}
    shutil.copy(folder / 'cat/000.jpg', folder / 'cat/zzz.jpg')
    seen.add(fingerprint(make(folder)))
    (folder / 'cat/zzz.jpg').rename(folder / 'cat/zzy.jpg')
    seen.add(fingerprint(make(folder)))
    (folder / 'dog/001.png').unlink()
    seen.add(fingerprint(make(folder)))
    seen.add(fingerprint(make(folder, indices=5)))
    seen.add(fingerprint(make(folder, indices=[0, 2, 1, 3, 4])))
    assert len(seen) == 6


def test_all_ways_to_the_same_files_agree(folder, tmp_path):
    names = sorted(str(path.relative_to(folder)) for path in folder.glob('*/*'))
    (tmp_path / 'relative.txt').write_text('\n'.join(names))
    (tmp_path / 'absolute.txt').write_text('\n'.join(f'{folder}/{name}' for name in names))
    (tmp_path / 'reversed.txt').write_text('\n'.join(names[::-1]))
    expected = fingerprint(images(folder))
    assert fingerprint(labelled(folder)) == expected
    assert fingerprint(images(folder, ann_file=str(tmp_path / 'relative.txt'))) == expected
    assert fingerprint(images('', ann_file=str(tmp_path / 'absolute.txt'))) == expected
    assert fingerprint(images(folder, ann_file=str(tmp_path / 'reversed.txt'))) != expected


def test_packed_images(folder, tmp_path, fork_tool):
    code, output = fork_tool('tools/dataset_converters/pack_images.py', folder, tmp_path / 'packed', '--workers', 1)
    assert code == 0, output
    packed = mmcae.datasets.PackedImages(data_root=str(tmp_path / 'packed'))
    first = mmcae.datasets.PackedImages(data_root=str(tmp_path / 'packed'), indices=4)
    assert fingerprint(packed) == fingerprint(mmcae.datasets.PackedImages(data_root=str(tmp_path / 'packed'))) != fingerprint(first)


def test_coco(tmp_path):
    from mmcae.datasets.sources.coco.dataset import CocoDataset

    (tmp_path / 'images').mkdir()
    for name in 'abc':
        Image.new('RGB', (8, 8)).save(tmp_path / 'images' / f'{name}.png')

    def make(names):
        entries = [dict(id=i, file_name=name, width=8, height=8) for i, name in enumerate(names, 1)]
        objects = [dict(id=i, image_id=i, category_id=1, bbox=[1, 1, 4, 4], area=16, iscrowd=0) for i in range(1, len(names) + 1)]
        content = dict(images=entries, annotations=objects, categories=[dict(id=1, name='cell')])
        (tmp_path / 'objects.json').write_text(json.dumps(content))
        where = dict(data_root=str(tmp_path), ann_file='objects.json', data_prefix=dict(img='images/'))
        return fingerprint(CocoDataset(**where, metainfo=dict(classes=('cell',)), pipeline=[], test_mode=True))

    assert make(['a.png', 'b.png']) == make(['a.png', 'b.png'])
    assert len({make(names) for names in (['a.png', 'b.png'], ['b.png', 'a.png'], ['a.png'], ['a.png', 'c.png'])}) == 4


def test_wrappers(folder):
    whole, part, other = labelled(folder), labelled(folder, indices=4), labelled(folder, indices=[4, 5, 6, 7])
    made = [
        ConcatDataset([whole, part]),
        ConcatDataset([part, whole]),
        ConcatDataset([whole, other]),
        RepeatDataset(part, times=2),
        RepeatDataset(part, times=3),
        RepeatDataset(other, times=2),
        ClassBalancedDataset(part, oversample_thr=0.9),
        Subset(whole, [0, 1, 2]),
        Subset(whole, [0, 2, 1]),
        KFoldDataset(dict(type='CustomDataset', data_root=str(folder), pipeline=[], _scope_='mmpretrain'), fold=0, num_splits=3),
        KFoldDataset(dict(type='CustomDataset', data_root=str(folder), pipeline=[], _scope_='mmpretrain'), fold=1, num_splits=3),
        whole,
        part,
        other,
    ]
    assert len({fingerprint(dataset) for dataset in made}) == len(made)
    again = ConcatDataset([labelled(folder), labelled(folder, indices=4)])
    assert fingerprint(again) == fingerprint(made[0])


class Arrays(BaseDataset):
    """Images in memory, as CIFAR's."""

    def __init__(self, values, **settings):
        self.values = values
        super().__init__(pipeline=[], **settings)

    def load_data_list(self):
        return [dict(img=np.full((2, 2), value), gt_label=0) for value in self.values]


class Plain(Dataset):
    """Nothing is known of its index."""

    def __len__(self):
        return 3


def test_data_sets_without_paths():
    for settings in ({}, dict(serialize_data=False)):
        assert fingerprint(Arrays([1, 2, 3], **settings)) == fingerprint(Arrays([1, 2, 3]))
        assert fingerprint(Arrays([1, 3, 2], **settings)) != fingerprint(Arrays([1, 2, 3]))
    assert fingerprint(Plain()) == fingerprint(Plain()) != fingerprint(TensorDataset(torch.zeros(3)))


@pytest.mark.parametrize(
    ('paths', 'expected'),
    [
        (['/data/x/a/1', '/data/x/b/2'], ['a/1', 'b/2']),
        (['/data/x/ab', '/data/x/ac'], ['ab', 'ac']),
        (['b/2', 'a/1'], ['b/2', 'a/1']),
        (['/x/a', '/x/a'], ['a', 'a']),
        (['a'], ['a']),
        ([], []),
    ],
)
def test_the_common_folder(paths, expected):
    assert below_common_folder([path.encode() for path in paths]) == [path.encode() for path in expected]
