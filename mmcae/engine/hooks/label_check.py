"""Stop a segmentation run whose label maps are missing, cannot be learnt from, or hold ids that the model has no class for."""

import logging

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log

from ...registry import HOOKS
from ...utils.errors import ConfigError, DataError

REMAP = (
    'Where 255 stands for a class, as in masks of 0 and 255, set remap={255: 1} of mmcae.LoadLabelMap '
    '(docs/segmentation.md, "Binary masks")'
)


@HOOKS.register_module()
class CheckLabels(Hook):
    """Check a segmentation data set against the model: files and classes before the run, label ids batch by batch.

    Without it an id beyond the classes shows as an assertion inside the loss, on a GPU without a trace of its origin, or not at all:
    mmseg's IoUMetric leaves such pixels out silently. A missing label map stops training only when its turn comes, and maps of which every
    pixel is ignored, or of one class, are learnt without a word. The maps of training and validation are read before the training.
    The ids of batches are compared on the CPU, at about a millisecond per crop of 512x512 pixels.

    Args:
        maps (int, optional): Label maps that are read of each data set before the run, evenly spread; all of them if it has no more, or for
            None. Defaults to 1000.

    Raises:
        ConfigError: Model and data set differ in the number of classes.
        DataError: A label map is missing, cannot be read (see :class:`~mmcae.datasets.transforms.load_label_map.LoadLabelMap`), has another
            size than its image, or an id outside [0, number of classes) that is not the head's `ignore_index`. All pixels of all maps that
            were read are ignored, or are of one class; or 255 occurs in masks of 0 and 255 only.
    """

    priority = 'VERY_HIGH'

    def __init__(self, maps: int | None = 1000):
        if maps is not None and maps < 1:
            raise ConfigError(f'CheckLabels: maps={maps} must be positive, or None for all')
        self.maps = maps
        self.val_checked = False

    def before_train(self, runner):
        self.check_dataset(runner.train_dataloader.dataset, runner.model, 'train_dataloader', trained=True)
        if runner.val_loop is not None:
            self.before_val(runner)
            self.val_checked = True

    def before_val(self, runner):
        if not self.val_checked:
            self.check_dataset(runner.val_dataloader.dataset, runner.model, 'val_dataloader')

    def before_test(self, runner):
        # Images to be segmented need not have label maps.
        self.check_dataset(runner.test_dataloader.dataset, runner.model, 'test_dataloader', complete=False)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.check_batch(data_batch, runner.model)

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        self.check_batch(data_batch, runner.model)

    def before_test_iter(self, runner, batch_idx, data_batch=None):
        self.check_batch(data_batch, runner.model)

    def check_dataset(self, dataset, model, name, complete=True, trained=False):
        """Compare the number of classes, and read label maps; with `complete` every image needs one, with `trained` two classes or more."""
        from ...datasets.sources.label_statistics import look_at_labels  # needs mmseg

        segmentor = segmentor_of(model)
        classes, wanted, ignored = dataset.metainfo.get('classes'), segmentor.num_classes, segmentor.decode_head.ignore_index
        if classes is None or len(classes) != wanted:
            raise ConfigError(
                f'{name}: the data set has {len(classes or ())} classes, the model {wanted}: set model.decode_head.num_classes and '
                'model.auxiliary_head.num_classes to the number of classes of the data set (metainfo=dict(classes=...) names them)'
            )
        found = look_at_labels(dataset, name, wanted, ignored, self.maps, complete)
        if found.looked_at:
            self.judge(found, name, list(classes), ignored, trained)

    def judge(self, found, name, classes, ignored, trained):
        """Refuse label maps that nothing can be learnt from, and write to the log what looks like a mistake."""
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

    def check_batch(self, data_batch, model):
        """Check the label ids of what a dataloader gives, test-time augmentation included."""
        from ...datasets.sources.label_statistics import no_classes

        segmentor = segmentor_of(model)
        for sample in flat(data_batch['data_samples']):
            if 'gt_sem_seg' not in sample:
                continue
            labels, ignored = sample.gt_sem_seg.data, segmentor.decode_head.ignore_index
            wrong = (labels < 0) | (labels >= segmentor.num_classes)
            wrong &= labels != ignored
            if wrong.any():
                ids = torch.unique(labels[wrong]).tolist()
                source = sample.metainfo.get('seg_map_path', 'a label map')
                shifted = ' (one more in the file: reduce_zero_label)' if sample.metainfo.get('reduce_zero_label') else ''
                raise DataError(f'{source} has the label ids {ids[:8]}{shifted}{no_classes(segmentor.num_classes, ignored)}')


def listed(names, most=8):
    """The first names, for a message."""
    return ', '.join(names[:most]) + (f' ... ({len(names)})' if len(names) > most else '')


def segmentor_of(model):
    """The segmentor inside the wrappers of distributed training and test-time augmentation."""
    while not hasattr(model, 'decode_head'):
        model = model.module
    return model


def flat(samples):
    """The data samples in lists of any depth."""
    for sample in samples:
        if isinstance(sample, (list, tuple)):
            yield from flat(sample)
        else:
            yield sample
