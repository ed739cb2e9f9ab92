"""Normalise the views of images with any number of channels: the one data preprocessor of pretraining."""

from collections.abc import Sequence

import torch
from mmengine.model import BaseDataPreprocessor

from ..datasets.crops import is_crop
from ..registry import MODELS
from ..utils.errors import ConfigError
from .device_views import make_views


@MODELS.register_module()
class ViewPreprocessor(BaseDataPreprocessor):
    """Move views to the device and normalise them; masks and other data samples stay where they are.

    Takes what a dataloader gives: `inputs`, a batch (B, C, H, W) of one view or a list of one or two, of uint8 or float pixels in [0, 255];
    or crops of which the views are made here (`TwoViewCrop(backend='device')`, see :mod:`mmcae.datasets.crops`).
    Gives a list of float32 batches. Data samples are left on the CPU: a mask there tells its number of patches without a wait for the GPU,
    and the indices made of all masks travel in one copy.

    Args:
        mean, std: Of the encoder's view: one number for each channel of the images, or a single one for all, in the units of the pixels.
        second_mean, second_std: The same for the target's view; what the target was made for.
        to_rgb: Images are loaded as BGR (by mmcv's LoadImageFromFile) and become RGB. mmcae.LoadImage gives RGB.
        non_blocking: Do not wait for the copy to a GPU; pinned memory (`pin_memory=True` of the dataloader) makes use of it.

    Raises:
        ConfigError: A mean and its standard deviation are for different numbers of channels, or a standard deviation is not positive.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        second_mean: Sequence[float] = (0.0,),
        second_std: Sequence[float] = (255.0,),
        to_rgb: bool = False,
        non_blocking: bool = True,
    ):
        super().__init__(non_blocking=non_blocking)
        self.to_rgb = to_rgb
        for prefix, means, stds in (('', mean, std), ('second_', second_mean, second_std)):
            if len(means) != len(stds) and 1 not in (len(means), len(stds)):
                raise ConfigError(
                    f'data_preprocessor.{prefix}mean has {len(means)} values and {prefix}std {len(stds)}: give both one for each channel, '
                    'or a single one'
                )
            if min(stds) <= 0:
                raise ConfigError(f'data_preprocessor.{prefix}std={list(stds)} must be positive')
            for name, values in (('mean', means), ('std', stds)):
                self.register_buffer(f'{prefix}{name}', torch.tensor(values, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, data: dict, training: bool = False) -> dict:
        """`dict(inputs=..., data_samples=...)` as a dataloader gives it -> the same with normalised views."""
        inputs = data['inputs']
        if is_crop(inputs):
            views = make_views(*inputs, self.mean.device, self._non_blocking)
        else:
            views = self.cast_data([inputs] if isinstance(inputs, torch.Tensor) else list(inputs))
        constants = ((self.mean, self.std), (self.second_mean, self.second_std))
        views = [view.flip(1) if self.to_rgb else view for view in views]
        normalised = [(view.float() - mean) / std for view, (mean, std) in zip(views, constants, strict=False)]
        return dict(inputs=normalised, data_samples=data.get('data_samples'))
