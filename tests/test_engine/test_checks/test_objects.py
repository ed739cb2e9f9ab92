"""Classes, objects and annotation ids of detection data sets that would give wrong results silently."""

from types import SimpleNamespace

import pytest
from torch import nn

from mmcae.engine import Checks
from mmcae.utils.errors import ConfigError, DataError


class Data(list):
    metainfo = dict(classes=('cat', 'dog'))
    get_data_info = list.__getitem__


def image(*flags):
    return dict(instances=[dict(ignore_flag=flag) for flag in flags])


class BaseDetector(nn.Module):
    """As far as the check looks at mmdet's."""


def run(*images, ids=(1, 2), number=2):
    """A run as far as the hook looks at it."""
    model = BaseDetector()
    model.head = nn.Module()
    model.head.num_classes = number
    metric = SimpleNamespace(_coco_api=SimpleNamespace(anns=dict.fromkeys(ids), imgs={7: dict(file_name='a\\7.png')}))
    loader, evaluator = SimpleNamespace(dataset=Data(images)), SimpleNamespace(metrics=[SimpleNamespace(), metric])
    return SimpleNamespace(
        model=model,
        train_dataloader=loader,
        val_dataloader=loader,
        test_dataloader=loader,
        val_loop=True,
        val_evaluator=evaluator,
        test_evaluator=evaluator,
    )


STAGES = ('before_train', 'before_val', 'before_test')


def check(stage, runner):
    getattr(Checks(), stage)(runner)


def test_right_runs_pass():
    for stage in STAGES:
        check(stage, run(image(), image(1), image(1, 0)))
        check(stage, run(dict(img_path='data sets that do not tell')))


def test_annotations_of_other_images():
    """Another file than the data set's, with other ids, or with the same ids for other images."""
    for stage in STAGES:
        check(stage, run(image(0) | dict(img_id=7, img_path='images/a/7.png')))
        for other in (dict(img_id=8, img_path='images/a/7.png'), dict(img_id=7, img_path='images/a/8.png')):
            with pytest.raises(ConfigError, match=rf'1 of 1 images .* first is {other["img_path"]}: set (val|test)_evaluator\.ann_file'):
                check(stage, run(image(0) | other))


def test_other_classes():
    for stage in STAGES:
        with pytest.raises(ConfigError, match='the data set has 2 classes .*head was made for 3'):
            check(stage, run(image(0), number=3))


def test_no_object_to_learn_from():
    with pytest.raises(DataError, match='train_dataloader: none of its 2 images has an object'):
        Checks().before_train(run(image(), image(1)))


def test_the_id_0():
    for stage in STAGES:
        with pytest.raises(ConfigError, match=r"evaluator: the annotation file has an annotation with the id 0.*type='mmcae\.CocoMetric'"):
            check(stage, run(image(0), ids=(0, 1)))
