"""What is shown to an encoder of an image, as its probes have it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor, tensor

from ..checkpoints.spec import IMAGENET_MEAN, IMAGENET_STD, default_crop
from ..datasets.transforms.evaluation_view import cut
from ..utils.errors import ConfigError
from .images import ImageLike, load_image, to_tensor


@dataclass(frozen=True)
class View:
    """Resize an image, cut out its centre, and normalise it: `view.normalize([view.cut(image)])`.

    Resizing and cutting are those of :class:`mmcae.datasets.transforms.EvaluationView`.

    Args:
        size: Pixels (h, w) of the result.
        mean, std: Of the pixels in [0, 255], one number for each channel, or one for all.
        channels: Of the images.
        crop: Share of each side of the resized image that is kept, in (0, 1]: 224/256 resizes to 256 and cuts out 224. Defaults to that,
            or to 1, the whole, for sides below 64 pixels.
        interpolation: 'bicubic', 'bilinear', 'nearest', 'lanczos' or another one of PIL's.

    Raises:
        ConfigError: Numbers that cannot be meant: for other channels, a `std` of 0, a `mean` and `std` of pixels in [0, 1].
    """

    size: tuple[int, int]
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    channels: int = 3
    crop: float | None = None
    interpolation: str = 'bicubic'

    def __post_init__(self):
        if self.crop is None:
            object.__setattr__(self, 'crop', default_crop(self.size))
        for name in ('mean', 'std'):
            object.__setattr__(self, name, numbers(getattr(self, name), name))
        if not is_number(self.crop) or not 0 < self.crop <= 1:
            raise ConfigError(f'crop={self.crop!r} is the share of the image that is kept, in (0, 1]')
        if self.interpolation.upper() not in Image.Resampling.__members__:
            known = ', '.join(name.lower() for name in Image.Resampling.__members__)
            raise ConfigError(f'interpolation={self.interpolation!r} is none of {known}')
        if {len(self.mean), len(self.std)} - {1, self.channels}:
            given = f'mean has {len(self.mean)} values and std {len(self.std)}'
            raise ConfigError(f'{given}, but the encoder reads {self.channels} channels: give one for each')
        if min(self.std) <= 0:
            raise ConfigError(f'std={list(self.std)} must be positive')
        most, spread = max(map(abs, self.mean)), max(self.std)
        if spread < 1 or (most <= 1 and (most > 0 or spread <= 1)):
            given = f'mean={list(self.mean)} and std={list(self.std)}'
            raise ConfigError(f'{given} look like those of pixels in [0, 1]; pixels are in [0, 255] here: multiply both by 255')

    def cut(self, image: np.ndarray) -> np.ndarray:
        """(H, W, channels) -> (h, w, channels), not normalised, of the same type."""
        return cut(image, self.size, self.crop, self.interpolation)

    def __call__(self, image: ImageLike) -> Tensor:
        """One image, see :func:`mmcae.apis.images.load_image` -> float32 (channels, h, w)."""
        return self.normalize([self.cut(load_image(image, self.channels))])[0]

    def normalize(self, cuts: Sequence[np.ndarray]) -> Tensor:
        """Cuts -> float32 (B, channels, h, w)."""
        mean, std = (tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (to_tensor(cuts) - mean) / std


def is_number(value) -> bool:
    """Whether it is a finite number, and no bool."""
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(value)


def numbers(values, name: str) -> tuple[float, ...]:
    """One number or several as a tuple of floats."""
    values = values.tolist() if isinstance(values, np.ndarray | Tensor) else values
    values = (values,) if is_number(values) else values
    if not isinstance(values, Sequence) or not values or not all(map(is_number, values)):
        raise ConfigError(f'{name}={values!r} must be a number, or one for each channel')
    return tuple(map(float, values))
