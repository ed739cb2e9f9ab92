"""Check that label maps are there, can be learned from, and hold the classes of the segmentor."""

import logging
from collections.abc import Iterator

import torch
from mmengine.logging import print_log

from ...registry import CHECKS
from ...utils.errors import ConfigError, DataError
from ...utils.wrappers import unwrapped
from .base import Check, is_kind

REMAP = (
    'Where 255 stands for a class, as in masks of 0 and 255, set remap={255: 1} of mmcae.LoadLabelMap '
    '(docs/segmentation.md, "Binary masks")'
)


@CHECKS.register_module('label_maps')
class LabelMapsCheck(Check):
    """Read label maps before the run, and compare the label ids of each batch with the classes of the model.

    For segmentors. Without this check an id outside of the classes is an assertion inside the loss, on a GPU without a trace of its
    origin, or goes unnoticed: mmseg's IoUMetric ignores such pixels. The ids of batches are compared on the CPU, at about a millisecond
    per crop of 512x512 pixels.

    Args:
        maps (int, optional): Label maps to read of each data set before the run, evenly spread; None reads all. Defaults to 1000.

    Raises:
        DataError: A label map is missing, cannot be read (see :class:`~mmcae.datasets.transforms.load_label_map.LoadLabelMap`), has another
            size than its image, or an id outside [0, number of classes) that is not the head's `ignore_index`. All pixels of all maps that
            were read are ignored, or are of one class; or 255 occurs in masks of 0 and 255 only.
    """

    def __init__(self, maps: int | None = 1000):
        if maps is not None and maps < 1:
            raise ConfigError(f'label_maps.maps={maps} must be positive, or None for all')
        self.maps = maps

    def applies_to(self, model):
        return is_kind(model, 'BaseSegmentor')

    def before_split(self, runner, split):
        from ...datasets.sources.label_statistics import look_at_labels  # needs mmseg

        name, dataset = f'{split}_dataloader', getattr(runner, f'{split}_dataloader').dataset
        model = unwrapped(runner.model)
        ignored = model.decode_head.ignore_index
        # Images of a test may have no label maps.
        found = look_at_labels(dataset, name, model.num_classes, ignored, self.maps, complete=split != 'test')
        if found.looked_at:
            judge(found, name, list(dataset.metainfo['classes']), ignored, trained=split == 'train')

    def before_iter(self, runner, batch):
        model = unwrapped(runner.model)
        for sample in flatten(batch['data_samples']):
            if 'gt_sem_seg' in sample:
                check_label_ids(sample, model.num_classes, model.decode_head.ignore_index)


def judge(found, name, classes, ignored, trained):
    """Refuse label maps that cannot be learned from, and log what is probably a mistake."""
    present = [label for label in range(len(classes)) if found.pixels[label] and label != ignored]
    absent = [f'{label} ({kind!r})' for label, kind in enumerate(classes) if label not in present]
    complete = found.looked_at == found.maps
    some = f'{found.looked_at:,} label maps' if complete else f'{found.looked_at:,} label maps looked at, of {found.maps:,},'
    means = f'The files hold {sorted(found.numbers)[:8]}'
    if found.ignored_numbers:
        means += f', of which {sorted(found.ignored_numbers)} are ignored' + ' (0 by reduce_zero_label)' * (0 in found.ignored_numbers)
    if not present:
        raise DataError(f'{name}: all pixels of {some} are ignored, such as of {found.ignored[0]}. {means}. {REMAP}')
    if len(present) == 1 and len(classes) > 1 and (trained or found.binary):
        raise DataError(
            f'{name}: all labelled pixels of {some} are of class {present[0]} ({classes[present[0]]!r}), such as of {found.first}; '
            f'none is of {listed(absent)}. {means}. {REMAP}'
        )
    if found.partly_ignored == len(found.binary) > 0.05 * found.looked_at:
        raise DataError(
            f'{name}: {len(found.binary):,} of {some} hold 0 and 255 only, the first is {found.binary[0]}, and no other holds classes '
            f'beside 255, which is ignored. {REMAP}'
        )
    if absent:
        level = logging.WARNING if complete else logging.INFO  # rare classes may be elsewhere
        print_log(f'{name}: no pixel of {some} is of {listed(absent)}. {means}', 'current', level)
    for paths, what in ((found.ignored, 'in which all pixels are ignored'), (found.binary, f'which hold 0 and 255 only. {REMAP}')):
        if paths:
            print_log(f'{name}: {some} have {len(paths):,}, the first is {paths[0]}, {what}', 'current', logging.WARNING)


def check_label_ids(sample, num_classes: int, ignored: int):
    """Refuse a data sample with label ids outside of the classes."""
    from ...datasets.sources.label_statistics import no_classes  # needs mmseg

    labels = sample.gt_sem_seg.data
    wrong = (labels < 0) | (labels >= num_classes)
    wrong &= labels != ignored
    if wrong.any():
        ids = torch.unique(labels[wrong]).tolist()
        source = sample.metainfo.get('seg_map_path', 'a label map')
        shifted = ' (one more in the file: reduce_zero_label)' if sample.metainfo.get('reduce_zero_label') else ''
        raise DataError(f'{source} has the label ids {ids[:8]}{shifted}{no_classes(num_classes, ignored)}')


def listed(names: list[str], most: int = 8) -> str:
    """The first names, for a message."""
    return ', '.join(names[:most]) + (f' ... ({len(names)})' if len(names) > most else '')


def flatten(samples: list) -> Iterator:
    """The data samples of a batch; those of test-time augmentation are lists of lists."""
    for sample in samples:
        if isinstance(sample, (list, tuple)):
            yield from flatten(sample)
        else:
            yield sample
