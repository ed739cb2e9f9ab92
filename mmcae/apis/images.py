"""From image files or arrays to what a model reads."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..datasets.transforms.loading import read_rgb
from ..utils.errors import DataError


def load_image(image: str | Path | np.ndarray) -> np.ndarray:
    """An image file, or an array, as uint8 RGB (H, W, 3).

    Raises:
        DataError: The file cannot be read, or the array is of another kind.
    """
    if not isinstance(image, np.ndarray):
        return read_rgb(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(f'Images are uint8 arrays (height, width, 3) in RGB; got {image.dtype} of shape {image.shape}')
    return image


def fit(image: np.ndarray, size: tuple[int, int], resample: Image.Resampling = Image.Resampling.BICUBIC) -> np.ndarray:
    """The largest central part of an image (H, W, 3) with the proportions of `size` (h, w), resized to it, antialiased."""
    if image.shape[:2] == tuple(size):
        return image
    return np.array(ImageOps.fit(Image.fromarray(np.ascontiguousarray(image)), size[::-1], resample))


def to_tensor(images: list[np.ndarray]) -> Tensor:
    """Arrays (h, w, 3) of one size -> tensor (B, 3, h, w), the values unchanged."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
