"""From image files or arrays to what a model reads."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..datasets.transforms.loading import read_image
from ..utils.errors import DataError


def load_image(image: str | Path | np.ndarray, channels: int = 3) -> np.ndarray:
    """An image file, or an array, as uint8 RGB (H, W, 3), or with other channels as :class:`mmcae.LoadImage` reads them.

    Raises:
        DataError: The file cannot be read, or the array is of another kind.
    """
    if not isinstance(image, np.ndarray):
        return read_image(image, channels)
    known = image.dtype == np.uint8 or (channels != 3 and image.dtype == np.float32)
    if not known or image.ndim != 3 or image.shape[2] != channels:
        kind = ' in RGB' if channels == 3 else ', or float32 in [0, 255]'
        raise DataError(f'Images are uint8 arrays (height, width, {channels}){kind}; got {image.dtype} of shape {image.shape}')
    return image


def fit(image: np.ndarray, size: tuple[int, int], resample: Image.Resampling = Image.Resampling.BICUBIC) -> np.ndarray:
    """The largest central part of an image (H, W, C) with the proportions of `size` (h, w), resized to it, antialiased."""
    if image.shape[:2] == tuple(size):
        return image
    if image.shape[2] == 3 and image.dtype == np.uint8:
        return np.array(ImageOps.fit(Image.fromarray(np.ascontiguousarray(image)), size[::-1], resample))
    planes = [ImageOps.fit(Image.fromarray(np.ascontiguousarray(plane)), size[::-1], resample) for plane in np.moveaxis(image, 2, 0)]
    return np.stack([np.asarray(plane) for plane in planes], axis=2)


def to_tensor(images: list[np.ndarray]) -> Tensor:
    """Arrays (h, w, C) of one size -> tensor (B, C, h, w), the values unchanged."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
