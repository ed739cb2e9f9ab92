"""Normalise two views of images with any number of channels."""

from collections.abc import Sequence

import torch
from mmpretrain.models import TwoNormDataPreprocessor

from ..registry import MODELS
from ..utils.errors import ConfigError


@MODELS.register_module()
class TwoViewPreprocessor(TwoNormDataPreprocessor):
    """mmpretrain's TwoNormDataPreprocessor for images that are neither grey nor RGB, which that one refuses.

    Args:
        mean, std: Of the model's view: one number for each channel of the images, or a single one for all, in the units of the pixels.
        second_mean, second_std: The same for the tokenizer's view; what it was trained with.
        non_blocking: Do not wait for the copy to a GPU.

    Raises:
        ConfigError: A mean and its standard deviation are for different numbers of channels, or a standard deviation is not positive.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        second_mean: Sequence[float] = (0.0,),
        second_std: Sequence[float] = (255.0,),
        non_blocking: bool = False,
    ):
        super().__init__(mean=[0.0], std=[1.0], second_mean=[0.0], second_std=[1.0], non_blocking=non_blocking)
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
