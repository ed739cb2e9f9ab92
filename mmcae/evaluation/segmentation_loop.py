"""The segmentation probes on frozen features as a test loop of mmengine, for configs."""

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dist import get_world_size
from mmengine.runner import TestLoop
from torch import Tensor
from torch.utils.data import DataLoader

from ..utils.errors import ConfigError, DataError
from ..utils.precision import autocast, check_dtype
from ..utils.wrappers import unwrapped
from .block_features import patch_features
from .features import build_dataloader
from .knn import EncoderOfAnyCheckpoint
from .metrics import mean_iou, pixel_accuracy
from .segmentation import DenseSplit, PatchBank, knn_segmentation, linear_segmentation, patch_labels

PROBES = dict(knn=knn_segmentation, linear=linear_segmentation)


class SegmentationProbeLoop(TestLoop):
    """Segment the test images by a probe on frozen patch features: a test loop, `test_cfg=dict(type='mmcae.SegmentationProbeLoop', ...)`.

    The model is an mmpretrain ImageClassifier with a backbone alone, an encoder of mmcae; the checkpoint may be any that
    :class:`.knn.KNNLoop` takes. Data sets are mmseg's, without augmentation, batches of one size of images. Images whose size is no
    multiple of the patches are squeezed to the nearest one. What a probe has to choose it chooses on the validation images. The metrics
    are `mIoU` and `aAcc`, in per cent, as mmseg's; evaluators are not asked.

    Args:
        runner: The runner.
        dataloader: The images to segment.
        evaluator: An empty list.
        bank_dataloader: The labelled images to learn from, in the form of a dataloader's config without sampler.
        val_dataloader: The images to choose on, in the same form.
        probe: 'knn' or 'linear', see :mod:`.segmentation`.
        patches: At most so many patches, drawn at random, are learnt from.
        seed: Of the draw.
        dtype: Precision of the encoder: 'float32', 'bfloat16', 'float16', or None for what the machine is fast in.
        settings: Of the probe's function: `k`, or `rates`, `epochs`, `min_steps`, `batch_size`.

    Raises:
        ConfigError: An unknown probe or dtype, no patches to learn from, an evaluator, or several processes.
        DataError: There are no images, or no labels to learn from.
    """

    def __init__(
        self,
        runner,
        dataloader,
        evaluator,
        bank_dataloader: dict,
        val_dataloader: dict,
        probe: str = 'knn',
        patches: int = 100_000,
        seed: int = 0,
        dtype: str | None = 'float32',
        settings: dict | None = None,
    ):
        super().__init__(runner, dataloader, evaluator)
        check_dtype(dtype, 'SegmentationProbeLoop')
        if probe not in PROBES or patches < 1:
            raise ConfigError(f'SegmentationProbeLoop: probe={probe!r} must be one of {", ".join(PROBES)}, patches={patches} at least 1')
        if self.evaluator.metrics:
            raise ConfigError('SegmentationProbeLoop computes mIoU itself: set test_evaluator=[]')
        if get_world_size() > 1:
            raise ConfigError('SegmentationProbeLoop runs in one process')
        self.probe, self.patches, self.seed, self.dtype, self.settings = PROBES[probe], patches, seed, dtype, settings or {}
        self.loaders = [build_dataloader(config) for config in (bank_dataloader, val_dataloader)]
        runner.register_hook(EncoderOfAnyCheckpoint())

    def run(self) -> dict:
        """Learn, choose, segment, and return the metrics."""
        self.runner.call_hook('before_test')
        self.runner.call_hook('before_test_epoch')
        model = unwrapped(self.runner.model).eval()
        train, val, test = (self.split(model, loader) for loader in (*self.loaders, self.dataloader))
        classes = len(self.dataloader.dataset.metainfo['classes'])
        bank = self.bank(train, model.backbone.patch_size, classes)
        areas, choice = self.probe(bank, val, test, device=next(model.parameters()).device, **self.settings)
        self.runner.logger.info(f'Chosen on the validation images: {choice}')
        weights = np.ones(len(areas))
        metrics = dict(mIoU=100 * mean_iou(areas)(weights), aAcc=100 * pixel_accuracy(areas)(weights))
        self.runner.call_hook('after_test_epoch', metrics=metrics)
        self.runner.call_hook('after_test')
        return metrics

    @torch.no_grad()
    def split(self, model, loader: DataLoader) -> DenseSplit:
        """The patch features of all images, in half precision in the main memory, and their label maps."""
        features, maps, grids = [], [], set()
        for batch in loader:
            images = to_patches(model.data_preprocessor(batch, False)['inputs'], model.backbone.patch_size)
            with autocast(self.dtype):
                features.append(patch_features(model.backbone, images).half().cpu())
            grids.add(model.backbone.grid_of(images.shape[-2:]))
            maps += [sample.gt_sem_seg.data[0].long() for sample in batch['data_samples']]
        if len(grids) != 1:
            raise DataError(f'Segmentation probes need images of one size, and these are of {len(grids)}: resize them in the pipeline')
        return DenseSplit(torch.cat(features), grids.pop(), lambda: maps)

    def bank(self, train: DenseSplit, patch_size: tuple[int, int], classes: int) -> PatchBank:
        """Patches of the training images, drawn at random."""
        labels = torch.cat([patch_labels(one, train.grid, patch_size, classes) for one in train.maps()])
        kept = np.sort(np.random.default_rng(self.seed).permutation(len(labels))[: self.patches])
        return PatchBank(train.features.flatten(0, 1)[kept], labels[kept], classes)


def to_patches(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Images (B, C, H, W) of the nearest size that patches tile."""
    size = tuple(max(1, round(side / patch)) * patch for side, patch in zip(images.shape[-2:], patch_size, strict=True))
    if size == tuple(images.shape[-2:]):
        return images
    return F.interpolate(images, size, mode='bilinear', antialias=True)
