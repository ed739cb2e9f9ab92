"""Check that model and data sets have the same classes."""

import numpy as np

from ...registry import CHECKS
from ...utils.errors import ConfigError, DataError
from ...utils.wrappers import unwrapped
from .base import Check, is_kind

CLASS_AGNOSTIC = ('backbone', 'neck', 'rpn_head')  # parts whose number of classes does not depend on the data


@CHECKS.register_module('classes')
class ClassesCheck(Check):
    """Compare the classes of the data sets with the heads of the model, and with each other.

    For classifiers, detectors and segmentors. Without this check a missing class is an assertion inside the loss, on a GPU without a
    trace of its origin; an additional one is an index error in the metric, or goes unnoticed. Class folders are numbered for each split
    alone: where a split lacks one, the labels of all later classes change.

    Raises:
        ConfigError: A head has another number of classes than a data set.
        DataError: A data set does not name its classes, training and validation have different classes, or a class of a classifier has no
            training image.
    """

    def applies_to(self, model):
        return is_kind(model, 'BaseClassifier', 'BaseDetector', 'BaseSegmentor')

    def before_split(self, runner, split):
        model, dataset = unwrapped(runner.model), getattr(runner, f'{split}_dataloader').dataset
        name = f'{split}_dataloader'
        classes = dataset.metainfo.get('classes')
        if classes is None:
            raise DataError(f'{name}: the data set does not name its classes: give it metainfo=dict(classes=[...])')
        for path, number in numbers_of_classes(model).items():
            if number != len(classes):
                examples = f' ({", ".join(classes[:3])} ...)' if classes else ''
                raise ConfigError(
                    f'{name}: the data set has {len(classes)} classes{examples}, but {path} was made for {number}: set '
                    f'model.{path}.num_classes={len(classes)}, or metainfo=dict(classes=(...)) of the data set'
                )
        if split == 'train' and is_kind(model, 'BaseClassifier'):
            check_every_class_has_images(dataset, classes, name)
        if split == 'train' and runner.val_loop is not None:
            check_same_classes(classes, runner.val_dataloader.dataset.metainfo.get('classes') or ())


def numbers_of_classes(model) -> dict[str, int]:
    """The number of classes of each part of a model that has one, by its dotted name."""
    parts = {path: getattr(part, 'num_classes', None) for path, part in model.named_modules() if path}
    return {path: n for path, n in parts.items() if isinstance(n, int) and not any(name in path.split('.') for name in CLASS_AGNOSTIC)}


def check_every_class_has_images(dataset, classes, name):
    """Refuse a class that is never trained."""
    present = {int(label) for i in range(len(dataset)) for label in np.atleast_1d(dataset.get_data_info(i)['gt_label'])}
    empty = [kind for label, kind in enumerate(classes) if label not in present]
    if empty:
        raise DataError(
            f'{name}: {len(empty)} of {len(classes)} classes have no image, the first is {empty[0]!r}: add images, or remove the class '
            'everywhere'
        )


def check_same_classes(train, val):
    """Compare the classes of training and validation."""
    if list(train) != list(val):
        only = sorted(set(train) - set(val))[:3], sorted(set(val) - set(train))[:3]
        raise DataError(
            f'train_dataloader and val_dataloader have different classes: only the first has {only[0]}, only the second {only[1]}. Every '
            'split needs the same classes in the same order (class folders are numbered in alphabetical order)'
        )
