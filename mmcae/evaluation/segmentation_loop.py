"""The segmentation probes on frozen features as a test loop of mmengine, for configs."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dist import get_world_size
from mmengine.runner import TestLoop
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from ..utils.errors import ConfigError, DataError, nearest
from ..utils.precision import autocast, check_dtype
from ..utils.wrappers import unwrapped
from .block_features import patch_features
from .features import build_dataloader
from .knn import EncoderOfAnyCheckpoint
from .metrics import mean_iou, pixel_accuracy
from .segmentation import DenseBatch, check_numbers, draw_patches, knn_segmentation, linear_segmentation
from .sweep import BLOCKS

PROBES = dict(knn=knn_segmentation, linear=linear_segmentation)
SETTINGS = dict(knn=('k',), linear=('rates', 'blocks', 'epochs', 'min_steps', 'batch_size'))
VAL_SHARE = 0.2


class SegmentationProbeLoop(TestLoop):
    """Segment the test images by a probe on frozen patch features: a test loop, `test_cfg=dict(type='mmcae.SegmentationProbeLoop', ...)`.

    The model is an mmpretrain ImageClassifier with a backbone alone, an encoder of mmcae; the checkpoint may be any that
    :class:`.knn.KNNLoop` takes. Data sets are mmseg's, without augmentation, the images of a batch of one size. Images whose size is no
    multiple of the patches are squeezed to the nearest one. What a probe has to choose it chooses on the validation images. The metrics
    are `mIoU` and `aAcc`, in per cent, as mmseg's; evaluators are not asked.

    Data sets may have any size: images pass by once, batch after batch, and of those to learn from `patches` patches stay in memory. With
    the defaults, batches of 16 images of 1024 patches and ViT-B the patches took 0.7 GB for kNN and 4.2 GB for the linear probe, which
    reads four blocks and learns in single precision; both grow with `patches`, not with the number of images.

    Args:
        runner: The runner.
        dataloader: The images to segment.
        evaluator: An empty list.
        bank_dataloader: The labelled images to learn from, in the form of a dataloader's config without sampler.
        val_dataloader: The images to choose on, in the same form. Where there is none a fifth of those to learn from, drawn at random, is
            chosen on and not learnt from.
        probe: 'knn' or 'linear', see :mod:`.segmentation`.
        patches: At most so many labelled patches, drawn at random from all images, are learnt from. The log tells of how many.
        seed: Of the draws.
        dtype: Precision of the encoder: 'float32', 'bfloat16', 'float16', or None for what the machine is fast in.
        settings: Of the probe: `k`; or `rates`, `blocks`, `epochs`, `min_steps`, `batch_size`.

    Raises:
        ConfigError: An unknown probe, setting or dtype, no patches to learn from, an evaluator, or several processes.
        DataError: There are no images, no labels to learn from, a number in a label map that is no class, or images of several sizes in a
            batch.
    """

    def __init__(
        self,
        runner,
        dataloader,
        evaluator,
        bank_dataloader: dict,
        val_dataloader: dict | None = None,
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
        for name in settings or {}:
            if name not in SETTINGS[probe]:
                raise ConfigError(
                    f'SegmentationProbeLoop: the probe {probe!r} has no setting {name!r}{nearest(name, SETTINGS[probe])}; it has '
                    f'{", ".join(SETTINGS[probe])}'
                )
        if self.evaluator.metrics:
            raise ConfigError('SegmentationProbeLoop computes mIoU itself: set test_evaluator=[]')
        if get_world_size() > 1:
            raise ConfigError('SegmentationProbeLoop runs in one process')
        self.probe, self.patches, self.seed, self.dtype, self.settings = PROBES[probe], patches, seed, dtype, settings or {}
        self.blocks = max(self.settings.get('blocks', BLOCKS)) if probe == 'linear' else 1
        self.classes = len(self.dataloader.dataset.metainfo['classes'])
        self.loaders = train_and_val(bank_dataloader, val_dataloader, seed)
        runner.register_hook(EncoderOfAnyCheckpoint())

    def run(self) -> dict:
        """Learn, choose, segment, and return the metrics."""
        self.runner.call_hook('before_test')
        self.runner.call_hook('before_test_epoch')
        model = unwrapped(self.runner.model).eval()
        train, val, test = (lambda loader=loader: self.batches(model, loader) for loader in (*self.loaders, self.dataloader))
        counts = [f'{len(loader.dataset):,}' for loader in (*self.loaders, self.dataloader)]
        self.runner.logger.info(f'Images: {counts[0]} to learn from, {counts[1]} to choose on, {counts[2]} to segment')
        bank = draw_patches(train, model.backbone.patch_size, self.classes, self.patches, self.seed)
        areas, choice = self.probe(bank, val, test, device=next(model.parameters()).device, **self.settings)
        self.runner.logger.info(f'Chosen on the validation images: {choice}')
        weights = np.ones(len(areas))
        metrics = dict(mIoU=100 * mean_iou(areas)(weights), aAcc=100 * pixel_accuracy(areas)(weights))
        self.runner.call_hook('after_test_epoch', metrics=metrics)
        self.runner.call_hook('after_test')
        return metrics

    @torch.no_grad()
    def batches(self, model, loader: DataLoader) -> Iterator[DenseBatch]:
        """One pass over the images, with features in half precision."""
        for batch in loader:
            samples = batch['data_samples']
            sizes = sorted({tuple(image.shape[-2:]) for image in batch['inputs']})
            if len(sizes) > 1:
                raise DataError(
                    f'Segmentation probes need the images of a batch in one size, and {samples[0].metainfo.get("img_path", "one")} and '
                    f'others come as {sizes[0]} and {sizes[1]}: resize them in the pipeline, or set batch_size=1'
                )
            images = to_patches(model.data_preprocessor(batch, False)['inputs'], model.backbone.patch_size)
            with autocast(self.dtype):
                features = patch_features(model.backbone, images, self.blocks).half()
            maps = [sample.gt_sem_seg.data[0].long() for sample in samples]
            for one, sample in zip(maps, samples, strict=True):
                check_numbers(one, self.classes, sample.metainfo.get('seg_map_path', 'A label map'))
            yield DenseBatch(features, model.backbone.grid_of(images.shape[-2:]), maps)


def train_and_val(bank: dict, val: dict | None, seed: int) -> tuple[DataLoader, DataLoader]:
    """Loaders of the images to learn from and to choose on."""
    bank, val = (part and dict(dict(collate_fn=dict(type='pseudo_collate')), **part) for part in (bank, val))
    if val is not None:
        return build_dataloader(bank), build_dataloader(val)
    dataset = build_dataloader(bank).dataset
    if len(dataset) < 2:
        raise DataError('SegmentationProbeLoop has fewer than 2 images to learn from, so that none is left to choose on: add images')
    order = np.random.default_rng(seed).permutation(len(dataset))
    held_out = max(1, round(VAL_SHARE * len(dataset)))
    parts = (Subset(dataset, sorted(rows.tolist())) for rows in (order[held_out:], order[:held_out]))
    return tuple(build_dataloader(dict(bank, dataset=part)) for part in parts)


def to_patches(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Images (B, C, H, W) of the nearest size that patches tile."""
    size = tuple(max(1, round(side / patch)) * patch for side, patch in zip(images.shape[-2:], patch_size, strict=True))
    if size == tuple(images.shape[-2:]):
        return images
    return F.interpolate(images, size, mode='bilinear', antialias=True)
