"""Stop a segmentation run whose label maps are missing, or hold ids that the model has no class for."""

import torch
from mmengine.fileio import exists
from mmengine.hooks import Hook

from ...registry import HOOKS
from ...utils.errors import ConfigError, DataError


@HOOKS.register_module()
class CheckLabels(Hook):
    """Check a segmentation data set against the model: as a whole before the run, its label ids batch by batch.

    Without it an id beyond the classes shows as an assertion inside the loss, on a GPU without a trace of its origin, or not at all:
    mmseg's IoUMetric leaves such pixels out silently. And a missing label map stops training only when its turn comes.
    The ids are compared on the CPU, at about a millisecond per crop of 512x512 pixels.

    Raises:
        ConfigError: Model and data set differ in the number of classes.
        DataError: A label map is missing, or has an id outside [0, number of classes) that is not the head's `ignore_index`.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner):
        self.check_dataset(runner.train_dataloader.dataset, runner.model, 'train_dataloader')

    def before_val(self, runner):
        self.check_dataset(runner.val_dataloader.dataset, runner.model, 'val_dataloader')

    def before_test(self, runner):
        # Images to be segmented need not have label maps.
        self.check_dataset(runner.test_dataloader.dataset, runner.model, 'test_dataloader', files=False)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.check_batch(data_batch, runner.model)

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        self.check_batch(data_batch, runner.model)

    def before_test_iter(self, runner, batch_idx, data_batch=None):
        self.check_batch(data_batch, runner.model)

    def check_dataset(self, dataset, model, name, files=True):
        """Compare the number of classes and, with `files`, look whether every label map exists; `name` is for the message."""
        classes, wanted = dataset.metainfo.get('classes'), segmentor_of(model).num_classes
        if classes is None or len(classes) != wanted:
            raise ConfigError(
                f'{name}: the data set has {len(classes or ())} classes, the model {wanted}: set model.decode_head.num_classes and '
                'model.auxiliary_head.num_classes to the number of classes of the data set (metainfo=dict(classes=...) names them)'
            )
        if not files:
            return
        paths = {dataset.get_data_info(i).get('seg_map_path') for i in range(len(dataset))} - {None}
        missing = sorted(path for path in paths if not exists(path))
        if missing:
            raise DataError(
                f'{name}: {len(missing)} of {len(paths)} label maps are missing, the first is {missing[0]}: every image needs a label map '
                'of the same name (and the suffix seg_map_suffix) under data_prefix.seg_map_path, or list the complete ones in ann_file'
            )

    def check_batch(self, data_batch, model):
        """Check the label ids of what a dataloader gives, test-time augmentation included."""
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
                raise DataError(
                    f'{source} has the label ids {ids[:8]}{shifted}, but the model has the classes 0 to {segmentor.num_classes - 1}, and '
                    f'{ignored} is ignored: correct the label maps (docs/segmentation.md, "Your own data set") or num_classes of the heads'
                )


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
