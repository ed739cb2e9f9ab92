"""Check that a detector has objects to learn from, and that COCO metrics score the images of the data set."""

from pathlib import PurePosixPath

from ...datasets.wrappers import innermost
from ...registry import CHECKS
from ...utils.errors import ConfigError, DataError
from .base import Check, is_kind


@CHECKS.register_module('objects')
class ObjectsCheck(Check):
    """Look for objects in the training data, and compare the evaluator's annotations with the data set.

    For detectors. Training without objects gives losses of 0.

    Raises:
        ConfigError: An evaluator has the annotations of other images; or mmdet's own CocoMetric would score annotations with the id 0,
            which COCO's code counts as missed however well they were detected.
        DataError: No training image has an object.
    """

    def applies_to(self, model):
        return is_kind(model, 'BaseDetector')

    def before_split(self, runner, split):
        dataset = getattr(runner, f'{split}_dataloader').dataset
        infos = [part.get_data_info(i) for part in innermost(dataset) for i in range(len(part))]
        if split != 'train':
            check_metrics(getattr(runner, f'{split}_evaluator'), infos, f'{split}_evaluator')
        elif not any(has_object(info) for info in infos):
            raise DataError(f'train_dataloader: none of its {len(dataset)} images has an object to learn from')


def check_metrics(evaluator, infos: list[dict], name: str):
    """Compare the annotations of an evaluator's COCO metrics with the images of its data set."""
    for metric in evaluator.metrics:
        coco = getattr(metric, '_coco_api', None)
        if coco is None:
            continue
        others = [info['img_path'] for info in infos if not is_known(info, coco.imgs)]
        if others:
            raise ConfigError(
                f'{name}: {len(others)} of {len(infos)} images of the data set have another name, or none, under their id in the '
                f'annotation file of the evaluator, the first is {others[0]}: set {name}.ann_file to the ann_file of the data set'
            )
        if 0 in coco.anns:
            raise ConfigError(
                f'{name}: the annotation file has an annotation with the id 0, which {type(metric).__name__} counts as missed: set '
                f"{name}.type='mmcae.CocoMetric'"
            )


def is_known(info: dict, images: dict) -> bool:
    """Whether a COCO file has an image of the data set under its id and name; data sets without ids are not compared."""
    name = images.get(info.get('img_id'), {}).get('file_name')
    if 'img_id' not in info or name == '':
        return True
    return name is not None and PurePosixPath(name.replace('\\', '/')).name == PurePosixPath(info['img_path'].replace('\\', '/')).name


def has_object(info: dict) -> bool:
    """Whether an image has an object that is not ignored; images without a list of instances count as having one."""
    return any(not instance.get('ignore_flag', 0) for instance in info['instances']) if 'instances' in info else True
