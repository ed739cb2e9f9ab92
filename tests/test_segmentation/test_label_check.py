"""CheckLabels: label maps and classes that do not fit stop a run with a message that names the file."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.structures import PixelData
from mmseg.datasets import BaseSegDataset
from mmseg.structures import SegDataSample
from torch import nn

from mmcae.engine.hooks import CheckLabels
from mmcae.utils.errors import ConfigError, DataError

CLASSES = ('ground', 'square', 'disc')


class Segmentor(nn.Module):
    num_classes = 3
    decode_head = SimpleNamespace(ignore_index=255)


def sample(*ids, **meta):
    return SegDataSample(gt_sem_seg=PixelData(data=torch.tensor(ids).view(1, 1, -1)), metainfo=dict(seg_map_path='maps/7.png', **meta))


@pytest.fixture
def runner(scenes):
    """A run on two splits of a small data set, as far as the hook looks at it."""
    root = scenes(count=3)

    def dataset(split, classes=CLASSES):
        prefix = dict(img_path=f'images/{split}', seg_map_path=f'annotations/{split}')
        return BaseSegDataset(data_root=str(root), data_prefix=prefix, metainfo=dict(classes=classes))

    loaders = {
        f'{name}_dataloader': SimpleNamespace(dataset=dataset(split))
        for name, split in (('train', 'training'), ('val', 'validation'), ('test', 'validation'))
    }
    return SimpleNamespace(model=Segmentor(), root=root, dataset=dataset, **loaders)


def test_complete_data_passes(runner):
    hook = CheckLabels()
    for stage in (hook.before_train, hook.before_val, hook.before_test):
        stage(runner)
    for step in (hook.before_train_iter, hook.before_val_iter, hook.before_test_iter):
        step(runner, 0, dict(data_samples=[sample(0, 2, 255), sample(1, 1, 1)]))


@pytest.mark.parametrize('step', ('before_train_iter', 'before_val_iter', 'before_test_iter'))
def test_ids_outside_the_classes(runner, step):
    data = dict(data_samples=[sample(0, 2), sample(1, 3, 11, 255)])
    with pytest.raises(DataError, match=r'maps/7.png has the label ids \[3, 11\], but the model has the classes 0 to 2, and 255'):
        getattr(CheckLabels(), step)(runner, 0, data)


def test_shifted_ids_are_explained(runner):
    with pytest.raises(DataError, match=r'label ids \[3\] \(one more in the file: reduce_zero_label\)'):
        CheckLabels().before_train_iter(runner, 0, dict(data_samples=[sample(3, reduce_zero_label=True)]))


def test_test_time_augmentation_and_wrappers(runner):
    """The samples of several augmentations, and a model inside two wrappers."""
    runner.model = SimpleNamespace(module=SimpleNamespace(module=runner.model))
    hook = CheckLabels()
    hook.before_test_iter(runner, 0, dict(data_samples=[[sample(0)], [sample(1)]]))
    with pytest.raises(DataError, match=r'label ids \[5\]'):
        hook.before_test_iter(runner, 0, dict(data_samples=[[sample(0)], [sample(5)]]))


def test_images_without_labels_can_be_tested(runner):
    CheckLabels().before_test_iter(runner, 0, dict(data_samples=[SegDataSample()]))


def test_missing_label_map(runner):
    path = runner.root / 'annotations/training/1.png'
    path.unlink()
    hook = CheckLabels()
    with pytest.raises(DataError, match=f'train_dataloader: 1 of 3 label maps are missing, the first is {path}'):
        hook.before_train(runner)
    hook.before_val(runner)
    # A test set need not have any.
    (runner.root / 'annotations/validation/2.png').unlink()
    hook.before_test(runner)
    with pytest.raises(DataError, match='val_dataloader: 1 of 3 label maps'):
        hook.before_val(runner)


@pytest.mark.parametrize(('classes', 'number'), ((CLASSES[:2], 2), ((), 0)))
def test_number_of_classes(runner, classes, number):
    runner.train_dataloader.dataset = runner.dataset('training', classes)
    with pytest.raises(ConfigError, match=f'train_dataloader: the data set has {number} classes, the model 3: set model.decode_head'):
        CheckLabels().before_train(runner)
