"""See during the training of a tokenizer what it keeps of images: reconstructions next to the originals, as pictures."""

from pathlib import Path

import numpy as np
import torch
from mmengine.dist import master_only
from mmengine.hooks import Hook
from torch import Tensor

from ...registry import HOOKS
from ...utils.errors import ConfigError
from ...utils.wrappers import unwrapped
from ...visualization.sheet import as_rgb, picture_sheet, save_picture


@HOOKS.register_module()
class DrawReconstructions(Hook):
    """Write a sheet of images as they are and as the tokenizer draws them from their tokens alone: `WORK_DIR/reconstructions/`.

    The images are the first of the run's first batch, the same in all sheets; see :func:`mmcae.visualization.sheet.as_rgb` for those with
    other channels than three.

    Args:
        interval: Epochs, or iterations, between two sheets.
        by_epoch: What `interval` counts.
        images: How many.
        pairs: How many of them stand beside each other.

    Raises:
        ConfigError: `interval`, `images` or `pairs` is not positive.
    """

    priority = 'LOW'

    def __init__(self, interval: int = 1, by_epoch: bool = True, images: int = 16, pairs: int = 4):
        if min(interval, images, pairs) < 1:
            raise ConfigError(f'DrawReconstructions needs positive numbers, got interval={interval}, images={images}, pairs={pairs}')
        self.interval, self.by_epoch, self.images, self.pairs = interval, by_epoch, images, pairs
        self.views = None

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if self.views is None:
            self.views = data_batch['inputs'][: self.images]

    def after_train_epoch(self, runner):
        if self.by_epoch and self.every_n_epochs(runner, self.interval):
            self.draw(runner, f'epoch_{runner.epoch + 1}')

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if not self.by_epoch and self.every_n_train_iters(runner, self.interval):
            self.draw(runner, f'iter_{runner.iter + 1}')

    @master_only
    def draw(self, runner, name: str):
        """Write one sheet."""
        originals, drawn = reconstruct_views(unwrapped(runner.model), self.views)
        cells = [cell for pair in zip(originals, drawn, strict=True) for cell in pair]
        columns = ('original', 'reconstruction') * self.pairs
        cells += [None] * (-len(cells) % len(columns))
        rows = [cells[start : start + len(columns)] for start in range(0, len(cells), len(columns))]
        save_picture(picture_sheet(rows, columns, side=112), Path(runner.work_dir) / 'reconstructions' / f'{name}.png')


@torch.no_grad()
def reconstruct_views(model, views: Tensor) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Images (B, C, h, w) out of the data pipeline, and what a tokenizer draws of their tokens: uint8 (h, w, 3) each."""
    was_training = model.training
    model.eval()
    try:
        images = model.data_preprocessor(dict(inputs=views, data_samples=None), False)['inputs']
        drawn = model.decode(model.tokenize(images), reference=images)
    finally:
        model.train(was_training)
    return [to_rgb(image) for image in images], [to_rgb(image) for image in drawn]


def to_rgb(image: Tensor) -> np.ndarray:
    """(C, h, w) in [0, 1] -> uint8 (h, w, 3)."""
    return as_rgb(255 * image.permute(1, 2, 0).cpu().numpy())
