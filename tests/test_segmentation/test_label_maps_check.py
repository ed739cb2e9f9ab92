"""Label maps that do not fit stop a run with a message that names the file."""

import logging
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.datasets import BaseSegDataset
from mmseg.structures import SegDataSample
from PIL import Image
from torch import nn

from mmcae.engine import Checks
from mmcae.utils.errors import ConfigError, DataError

CLASSES = ('ground', 'square', 'disc')


class Head(nn.Module):
    ignore_index = 255


class BaseSegmentor(nn.Module):
    """As far as the checks look at mmseg's."""

    def __init__(self, num_classes=3):
        super().__init__()
        self.decode_head = Head()
        self.decode_head.num_classes = self.num_classes = num_classes


def u8(*numbers):
    return np.array(numbers, np.uint8)


def u16(*numbers):
    return np.array(numbers, np.uint16)


def sample(*ids, **meta):
    return SegDataSample(gt_sem_seg=PixelData(data=torch.tensor(ids).view(1, 1, -1)), metainfo=dict(seg_map_path='maps/7.png', **meta))


@pytest.fixture
def runner(scenes):
    """A run on two splits of a small data set, as far as the hook looks at it."""
    root = scenes(count=3)

    def dataset(split, classes=CLASSES):
        prefix = dict(img_path=f'images/{split}', seg_map_path=f'annotations/{split}')
        return BaseSegDataset(data_root=str(root), data_prefix=prefix, metainfo=dict(classes=classes), serialize_data=False)

    loaders = {
        f'{name}_dataloader': SimpleNamespace(dataset=dataset(split))
        for name, split in (('train', 'training'), ('val', 'validation'), ('test', 'validation'))
    }
    return SimpleNamespace(model=BaseSegmentor(), root=root, dataset=dataset, val_loop=None, **loaders)


def test_complete_data_passes(runner):
    hook = Checks()
    for stage in (hook.before_train, hook.before_val, hook.before_test):
        stage(runner)
    for step in (hook.before_train_iter, hook.before_val_iter, hook.before_test_iter):
        step(runner, 0, dict(data_samples=[sample(0, 2, 255), sample(1, 1, 1)]))


@pytest.mark.parametrize('step', ('before_train_iter', 'before_val_iter', 'before_test_iter'))
def test_ids_outside_the_classes(runner, step):
    data = dict(data_samples=[sample(0, 2), sample(1, 3, 11, 255)])
    with pytest.raises(DataError, match=r'maps/7.png has the label ids \[3, 11\], but the model has the classes 0 to 2, and 255'):
        getattr(Checks(), step)(runner, 0, data)


def test_shifted_ids_are_explained(runner):
    with pytest.raises(DataError, match=r'label ids \[3\] \(one more in the file: reduce_zero_label\)'):
        Checks().before_train_iter(runner, 0, dict(data_samples=[sample(3, reduce_zero_label=True)]))


def test_test_time_augmentation_and_wrappers(runner):
    """The samples of several augmentations, and a model inside two wrappers."""
    runner.model = SimpleNamespace(module=SimpleNamespace(module=runner.model))
    hook = Checks()
    hook.before_test_iter(runner, 0, dict(data_samples=[[sample(0)], [sample(1)]]))
    with pytest.raises(DataError, match=r'label ids \[5\]'):
        hook.before_test_iter(runner, 0, dict(data_samples=[[sample(0)], [sample(5)]]))


def test_images_without_labels_can_be_tested(runner):
    Checks().before_test_iter(runner, 0, dict(data_samples=[SegDataSample()]))


def test_missing_label_map(runner):
    path = runner.root / 'annotations/training/1.png'
    path.unlink()
    hook = Checks()
    with pytest.raises(DataError, match=f'train_dataloader: 1 of 3 label maps are missing, the first is {path}'):
        hook.before_train(runner)
    hook.before_val(runner)
    # A test set need not have any.
    (runner.root / 'annotations/validation/2.png').unlink()
    hook.before_test(runner)
    with pytest.raises(DataError, match='val_dataloader: 1 of 3 label maps'):
        Checks().before_val(runner)


@pytest.mark.parametrize(('classes', 'number'), ((CLASSES[:2], 2), ((), 0)))
def test_number_of_classes(runner, classes, number):
    runner.train_dataloader.dataset = runner.dataset('training', classes)
    with pytest.raises(
        ConfigError,
        match=f'the data set has {number} classes.*, but decode_head was made for 3: set model.decode_head.num_classes={number}',
    ):
        Checks().before_train(runner)


# ---- label maps that are read before the run


@pytest.fixture
def judged(tmp_path):
    """What the hook says about label maps with these numbers: `judged(maps, classes=2, ...)` runs `before_train`."""

    def run(maps, val=None, classes=2, names=None, hook=None, loader='mmcae.LoadLabelMap', size=(6, 8), loading=(), **settings):
        init_default_scope('mmseg')
        datasets = []
        for split, labels in (('train', maps), ('val', maps if val is None else val)):
            for kind in ('images', 'labels'):
                (tmp_path / split / kind).mkdir(parents=True)
            for i, values in enumerate(labels):
                values = np.asarray(values)
                values = values if values.ndim > 1 else np.resize(values, (6, 8))
                Image.fromarray(values).save(tmp_path / f'{split}/labels/{i}.png')
                Image.new('RGB', size[::-1]).save(tmp_path / f'{split}/images/{i}.jpg')
            datasets.append(
                BaseSegDataset(
                    data_root=str(tmp_path / split),
                    data_prefix=dict(img_path='images', seg_map_path='labels'),
                    metainfo=dict(classes=CLASSES[:classes]),
                    serialize_data=False,
                    pipeline=[dict(type='LoadImageFromFile'), dict(type=loader, **dict(loading)), dict(type='PackSegInputs')],
                    **settings,
                )
            )
        train, val = (SimpleNamespace(dataset=dataset) for dataset in datasets)
        model = BaseSegmentor(classes)
        runner = SimpleNamespace(model=model, train_dataloader=train, val_dataloader=val, test_dataloader=val, val_loop=True)
        runner.hook = hook or Checks()
        return runner

    return run


def said(caplog, runner):
    """What the hook writes to the log before the training."""
    logger = MMLogger.get_instance('labels')
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO):
        runner.hook.before_train(runner)
    logger.removeHandler(caplog.handler)
    return [(record.levelname, record.message) for record in caplog.records if '_dataloader:' in record.message]


@pytest.mark.parametrize('loader', ['mmcae.LoadLabelMap', 'LoadAnnotations'])
@pytest.mark.parametrize(
    ('labels', 'message'),
    [
        (
            u8(0, 255),
            r"train_dataloader: all labelled pixels of 3 label maps are of class 0 \('ground'\), such as of .*train/labels/0\.png; none is "
            r"of 1 \('square'\)\. The files hold \[0, 255\], of which \[255\] are ignored\. .*remap=\{255: 1\}",
        ),
        (u8(0), r"of class 0 \('ground'\), .*none is of 1 \('square'\)"),
        (u8(1), r"of class 1 \('square'\), .*none is of 0 \('ground'\)"),
        (u8(255), r'train_dataloader: all pixels of 3 label maps are ignored, such as of .*0\.png\. The files hold \[255\]'),
        (u8(0, 1, 2), r'train/labels/0\.png has the label ids \[2\], but the model has the classes 0 to 1, and 255 is ignored'),
        (u16(0, 256), r'train/labels/0\.png has the numbers \[256\]'),
        (u16(0, 1000), r'train/labels/0\.png has the numbers \[1000\]'),
        (np.zeros((6, 8, 3), np.uint8), r'train/labels/0\.png has 3 channels'),
        (np.zeros((3, 4), np.uint8), r'train/labels/0\.png is 4x3 pixels \(width x height\), but .*train/images/0\.jpg is 8x6'),
    ],
)
def test_maps_that_cannot_be_learnt_from(judged, loader, labels, message):
    """Whether loaded by us or by mmseg."""
    with pytest.raises(DataError, match=message):
        runner = judged([labels] * 3, loader=loader)
        runner.hook.before_train(runner)


def test_the_validation_is_looked_at_before_the_training(judged):
    good, bad = u8(0, 1), np.zeros((3, 4), np.uint8)
    runner = judged([good] * 2, val=[good, bad])
    with pytest.raises(DataError, match=r'val/labels/1\.png is 4x3 pixels'):
        runner.hook.before_train(runner)
    runner = SimpleNamespace(**vars(runner) | dict(val_loop=None))
    Checks().before_train(runner)
    with pytest.raises(DataError, match=r'val/labels/1\.png is 4x3 pixels'):
        Checks().before_test(runner)


def test_binary_masks_of_the_validation(judged):
    """One class alone may be right there, but not if all the rest is 255."""
    runner = judged([u8(0, 1)] * 2, val=[u8(0, 255)] * 2)
    with pytest.raises(DataError, match='val_dataloader: all labelled pixels of 2 label maps are of class 0'):
        runner.hook.before_train(runner)


def test_some_binary_masks(judged):
    """Where no other map has ignored pixels beside its classes, 255 is no class that is ignored."""
    with pytest.raises(DataError, match=r'train_dataloader: 2 of 4 label maps hold 0 and 255 only, the first is .*labels/1\.png, .*remap='):
        runner = judged([u8(0, 1), u8(0, 255), u8(0, 255), u8(255)])
        runner.hook.before_train(runner)


def test_remapped_binary_masks(judged, caplog):
    runner = judged([u8(0, 255)] * 2, loading=dict(remap={255: 1}))
    assert said(caplog, runner) == []


def test_what_looks_like_a_mistake(judged, caplog):
    maps = [u8(0, 2), u8(0, 255), u8(255), u8(2, 255)]  # 255 is used for what is ignored
    found = said(caplog, judged(maps, val=[u8(0, 1, 2)], classes=3))
    assert [level for level, _ in found] == ['WARNING'] * 3
    assert (
        "train_dataloader: no pixel of 4 label maps is of 1 ('square'). The files hold [0, 2, 255], of which [255] are ignored"
        in found[0][1]
    )
    assert re.search(r'4 label maps have 1, the first is .*train/labels/2\.png, in which all pixels are ignored', found[1][1])
    assert re.search(
        r'4 label maps have 1, the first is .*train/labels/1\.png, which hold 0 and 255 only\. .*remap=\{255: 1\}', found[2][1]
    )


def test_zero_that_is_ignored(judged, caplog):
    """reduce_zero_label where 0 is a class: the last class has no pixel."""
    found = said(caplog, judged([u8(0, 1, 2)], classes=3, reduce_zero_label=True))
    assert "no pixel of 1 label maps is of 2 ('disc')" in found[0][1]
    assert 'The files hold [0, 1, 2], of which [0] are ignored (0 by reduce_zero_label)' in found[0][1]


def test_part_of_the_maps(judged, caplog):
    """Evenly spread; what does not occur in them may occur elsewhere."""
    maps = [u8(0, 2) if i % 3 else u8(0, 1) for i in range(9)]
    found = said(caplog, judged(maps, classes=3, hook=Checks(label_maps=dict(maps=3))))
    assert found[0] == ('INFO', "train_dataloader: no pixel of 3 label maps looked at, of 9, is of 2 ('disc'). The files hold [0, 1]")
    with pytest.raises(ConfigError, match='maps=0'):
        Checks(label_maps=dict(maps=0))


def test_maps_that_mmseg_would_cut(judged):
    """All of more than 8 bits are read where mmseg loads them, in the sample or not; ours refuses them when it loads them."""
    maps = [u8(0, 1), u8(0, 1), u16(0, 1, 256), u8(0, 1)]
    runner = judged(maps, hook=Checks(label_maps=dict(maps=2)), loader='LoadAnnotations', val=[u8(0, 1)])
    with pytest.raises(DataError, match=r'train/labels/2\.png has the numbers \[256\]'):
        Checks(label_maps=dict(maps=1)).before_train(runner)


def test_wrappers(judged):
    runner = judged([u8(0, 1), u8(0, 3)], classes=2)
    dataset = runner.train_dataloader.dataset
    for wrapped in (RepeatDataset(dataset, 3), ConcatDataset([dataset, dataset])):
        runner.train_dataloader.dataset = wrapped
        with pytest.raises(DataError, match=r'train/labels/1\.png has the label ids \[3\]'):
            runner.hook.before_train(runner)


def test_loaders_of_ones_own_are_left_alone(judged):
    """They may make classes of anything, such as of colours."""
    from mmcv.transforms import LoadAnnotations

    runner = judged([np.zeros((6, 8, 3), np.uint8)])
    for loader in (runner.train_dataloader, runner.val_dataloader):
        loader.dataset.pipeline.transforms[1] = type('LoadColours', (LoadAnnotations,), {})(
            with_bbox=False, with_label=False, with_seg=True
        )
    runner.hook.before_train(runner)


def test_data_without_label_maps(judged):
    runner = judged([u8(0, 1)])
    path = runner.train_dataloader.dataset.get_data_info(0)['img_path']
    runner.train_dataloader.dataset = BaseSegDataset(
        data_root=str(Path(path).parents[1]), data_prefix=dict(img_path='images'), metainfo=dict(classes=CLASSES[:2])
    )
    with pytest.raises(DataError, match=rf'train_dataloader: no label map belongs to {path}: set data_prefix\.seg_map_path'):
        runner.hook.before_train(runner)


def test_maps_are_turned_and_images_are_not(judged):
    runner = judged([u8(0, 1)], loading=dict(drawn_on='stored'))
    runner.train_dataloader.dataset.pipeline.transforms[0].color_type = 'color_ignore_orientation'
    with pytest.raises(ConfigError, match='turns the maps, but LoadImageFromFile leaves the images'):
        runner.hook.before_train(runner)
