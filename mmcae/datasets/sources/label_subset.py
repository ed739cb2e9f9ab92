"""Train on a few of the labels: a fixed, class-balanced choice out of any labelled data set."""

import numpy as np

from ...registry import DATASETS
from ...utils.errors import ConfigError


@DATASETS.register_module(name='LabelSubset')
def label_subset(dataset, labels, seed=0):
    """Build a classification data set and keep a class-balanced part of it, the same in every run.

    In a config: ``dict(type='mmcae.LabelSubset', labels=0.01, dataset=dict(type='ImageNet', ...))``. With the same seed a smaller part
    is contained in every larger one. The result is the data set itself, reduced: pipeline and meta information stay as they are.

    Args:
        dataset (dict): Config of a data set whose samples carry one label each (any of mmpretrain's).
        labels (float | int): How much to keep. A float is a share of each class, above 0 and up to 1.0, rounded to whole images. An int
            is a number of images in all, as many from each class; where that does not come out even, the first classes give one more.
        seed (int): Which images are drawn. Defaults to 0.

    Returns:
        mmengine.dataset.BaseDataset: The data set with the chosen images in their original order.

    Raises:
        ConfigError: ``labels`` is out of range, a class would be empty or has too few images, or the data set has no labels.
    """
    if isinstance(labels, float) and not 0 < labels <= 1:
        raise ConfigError(f'LabelSubset: labels={labels} must be a share in (0, 1]; write a whole number for a number of images')
    dataset = DATASETS.build(dataset)
    if not hasattr(dataset, 'get_gt_labels') or 'gt_label' not in dataset.get_data_info(0):
        raise ConfigError(f'LabelSubset: {type(dataset).__name__} has no labels here; it needs a classification data set with labels')
    targets = dataset.get_gt_labels()
    classes = dataset.CLASSES or range(targets.max() + 1)
    rng = np.random.default_rng(seed)
    chosen = []
    for target, name in enumerate(classes):
        members = rng.permutation(np.flatnonzero(targets == target))
        if isinstance(labels, float):
            count = round(labels * len(members))
        else:
            count = labels // len(classes) + (target < labels % len(classes))
        if not 0 < count <= len(members):
            raise ConfigError(f'LabelSubset: labels={labels} asks for {count} of the {len(members)} images of class {name!r}')
        chosen.extend(members[:count].tolist())
    dataset.get_subset_(sorted(chosen))
    return dataset
