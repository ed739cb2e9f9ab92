"""Detections and segmentations drawn into test images, beside the truth, one column per model."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData, PixelData
from PIL import Image

from ..checkpoints import load_state, load_strictly
from ..datasets import read_images_alike
from ..utils.errors import CheckpointError, ConfigError
from .sheet import enlarge, picture_sheet

MIN_SIDE = 288  # the libraries' lines and letters are made for images of at least this size


def predict(cfg: Config, checkpoint: str | Path, samples: list[dict]) -> list:
    """What a model of a detection or segmentation config says of samples of its test set: mmdet's or mmseg's data samples."""
    config = cfg.copy()
    # The checkpoint has all weights, so the one the encoder started from need not be there any more.
    config.model.backbone.init_cfg = None
    model = MODELS.build(config.model).eval().to(get_device())
    try:
        load_strictly(model, load_state(checkpoint), str(checkpoint))
    except CheckpointError as error:
        raise CheckpointError(f'{checkpoint} belongs to another model than {cfg.filename} describes. {error}') from error
    batch = dict(inputs=[sample['inputs'] for sample in samples], data_samples=[sample['data_samples'] for sample in samples])
    with torch.inference_mode():
        return model.test_step(batch)


def prediction_sheet(
    cfg: Config, checkpoints: Mapping[str, str | Path], count: int = 6, side: int = MIN_SIDE, min_score: float = 0.5
) -> Image.Image:
    """One row per test image: the image, the truth, and what each model predicts.

    Args:
        cfg: A detection or segmentation config; its test set is drawn from.
        checkpoints: Checkpoints of the config's model by the title of their column.
        count: Number of images, the first of the test set.
        side: Pixels of each picture on the sheet.
        min_score: Detections below it are not drawn.

    Raises:
        ConfigError: The config is for neither task.
    """
    scope = cfg.get('default_scope')
    if scope not in DRAWERS:
        raise ConfigError(f"Only detection (default_scope='mmdet') and segmentation ('mmseg') have such pictures, not {scope!r}")
    init_default_scope(scope)
    read_images_alike(cfg)
    dataset = Runner.build_dataloader(dict(cfg.test_dataloader, num_workers=0, persistent_workers=False)).dataset
    samples = [dataset[index] for index in range(min(count, len(dataset)))]
    draw = DRAWERS[scope](dataset.metainfo, min_score)
    images = [rgb_image(sample) for sample in samples]
    rows = [[enlarge_to_min(image), draw(image, sample['data_samples'], truth=True)] for image, sample in zip(images, samples, strict=True)]
    for checkpoint in checkpoints.values():
        for row, image, result in zip(rows, images, predict(cfg, checkpoint, samples), strict=True):
            row.append(draw(image, result, truth=False))
    return picture_sheet(rows, ['image', 'truth', *checkpoints], side)


def rgb_image(sample: dict) -> np.ndarray:
    """The image of a sample as the loader gave it (BGR, as mmcv loads), as uint8 RGB (H, W, 3)."""
    return np.ascontiguousarray(sample['inputs'].permute(1, 2, 0).numpy()[..., ::-1])


def scale_of(image: np.ndarray) -> int:
    """By which whole factor an image is enlarged before something is drawn into it."""
    return max(1, -(-MIN_SIDE // max(image.shape[:2])))


def enlarge_to_min(image: np.ndarray, smooth: bool = True) -> np.ndarray:
    """An image enlarged by a whole factor, so that lines and letters drawn into it are fine."""
    return enlarge(image, scale_of(image) * max(image.shape[:2]), smooth)


class DetectionDrawer:
    """Draws boxes, masks and class names by mmdet's own visualizer."""

    def __init__(self, metainfo: dict, min_score: float):
        from mmdet.visualization import DetLocalVisualizer

        self.min_score = min_score
        self.visualizer = DetLocalVisualizer(line_width=2, alpha=0.5)
        self.visualizer.dataset_meta = metainfo

    def __call__(self, image: np.ndarray, sample, truth: bool) -> np.ndarray:
        enlarged = enlarge_to_min(image)
        scaled = self.scaled((sample.gt_instances if truth else sample.pred_instances).cpu(), enlarged.shape, scale_of(image))
        drawn = type(sample)(**{'gt_instances' if truth else 'pred_instances': scaled})
        self.visualizer.add_datasample('', enlarged, drawn, draw_gt=truth, draw_pred=not truth, pred_score_thr=self.min_score)
        return self.visualizer.get_image()

    @staticmethod
    def scaled(instances: InstanceData, shape: tuple[int, ...], scale: int) -> InstanceData:
        """Instances of an image as those of the enlarged one of this shape."""
        boxes = getattr(instances.bboxes, 'tensor', instances.bboxes) * scale
        scaled = InstanceData(labels=instances.labels, bboxes=boxes)
        if 'scores' in instances:
            scaled.scores = instances.scores
        if 'masks' in instances:
            masks = instances.masks.to_ndarray() if hasattr(instances.masks, 'to_ndarray') else instances.masks.numpy()
            enlarged = [enlarge_labels(mask, shape) for mask in masks]
            scaled.masks = torch.from_numpy(np.stack(enlarged) if enlarged else np.zeros((0, *shape[:2]))).bool()
        return scaled


class SegmentationDrawer:
    """Draws label maps in the classes' colours, with their names, over the image in grey, by mmseg's own visualizer."""

    def __init__(self, metainfo: dict, min_score: float):
        from mmseg.visualization import SegLocalVisualizer

        self.visualizer = SegLocalVisualizer(alpha=0.6)
        self.visualizer.dataset_meta = metainfo

    def __call__(self, image: np.ndarray, sample, truth: bool) -> np.ndarray:
        enlarged = enlarge_to_min(image)
        labels = enlarge_labels((sample.gt_sem_seg if truth else sample.pred_sem_seg).data.cpu().numpy()[0], enlarged.shape)
        drawn = type(sample)(gt_sem_seg=PixelData(data=torch.from_numpy(labels)[None]))
        grey = np.array(Image.fromarray(enlarged).convert('L').convert('RGB'))  # so that colours tell classes and nothing else
        self.visualizer.add_datasample('', grey, drawn, draw_gt=True, draw_pred=False)
        return self.visualizer.get_image()


def enlarge_labels(labels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A mask or label map (h, w) with its pixels repeated, for an enlarged image of this shape."""
    return np.array(Image.fromarray(labels.astype(np.uint8)).resize(shape[1::-1], Image.Resampling.NEAREST))


DRAWERS = {'mmdet': DetectionDrawer, 'mmseg': SegmentationDrawer}
