"""From whatever people have images as to arrays of pixels."""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..datasets.transforms.evaluation_view import resize
from ..datasets.transforms.image_file import to_rgb
from ..datasets.transforms.loading import read_image, to_channels
from ..utils.errors import DataError

ImageLike = str | Path | bytes | IO[bytes] | Image.Image | np.ndarray | Tensor


def list_images(images: ImageLike | Iterable[ImageLike]) -> Iterator[ImageLike]:
    """Images one by one, from many (a list, a generator, an array (B, H, W, C), a tensor (B, C, H, W)) or from a single one.

    Raises:
        DataError: They are neither.
    """
    if isinstance(images, np.ndarray | Tensor):
        names = isinstance(images, np.ndarray) and images.dtype.kind in 'UO'
        if images.ndim == 4 or names:
            return iter(images)
        if images.ndim in (2, 3):
            return iter([images])
        raise DataError(f'An array or tensor of images has 4 axes, one of a single image 3 or 2; got the shape {tuple(images.shape)}')
    if isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | Image.Image) or hasattr(images, 'read'):
        return iter([images])
    if isinstance(images, Mapping) or not isinstance(images, Iterable):
        raise DataError(f'Images come as a list or another iterable, or as a single image; got a {type(images).__name__}')
    return iter(images)


def load_image(image: ImageLike, channels: int = 3, name: str = 'the image') -> np.ndarray:
    """Pixels of one image.

    Args:
        image: A file by its name (`~` is the home folder) or as bytes, an open file, a PIL image of any mode; or an array (H, W, C) or
            tensor (C, H, W), both also without the axis of channels for grey. Arrays and tensors hold uint8, or floats in [0, 1].
        channels: 3 for RGB, to which grey images are repeated; 1 for grey, of colour images the luma; files of other channels are read by
            :func:`mmcae.datasets.transforms.channels.read_channels`.
        name: What messages call an image without a name of its own.

    Returns:
        (H, W, channels): uint8 in [0, 255], or float32 in the same range.

    Raises:
        DataError: It cannot be read, or is no image of these channels.
    """
    if isinstance(image, str | os.PathLike):
        path = Path(image).expanduser()
        if path.is_dir():
            raise DataError(f'{path} is a folder: give the image files in it')
        if not path.exists():
            raise DataError(f'There is no image {path}')
        return read_image(path, channels)
    if hasattr(image, 'read'):
        image = image.read()
    if isinstance(image, bytes | bytearray | memoryview):
        return read_image(name if channels in (1, 3) else f'{name}.tif', channels, bytes(image))
    if isinstance(image, Image.Image):
        return from_pil(image, channels, name)
    if isinstance(image, Tensor):
        return from_tensor(image, channels, name)
    if isinstance(image, np.ndarray):
        return from_array(image, channels, f'{name}, an array of {image.dtype} and shape {image.shape}', f'(height, width, {channels})')
    raise DataError(f'{name} is a {type(image).__name__}: give file names, bytes, PIL images, arrays or tensors')


def from_pil(image: Image.Image, channels: int, name: str) -> np.ndarray:
    """A PIL image, upright, as the same image in a file would be read."""
    try:
        if channels in (1, 3):
            return to_channels(np.array(to_rgb(image)), channels)
        pixels = np.array(ImageOps.exif_transpose(image))
    except Exception as error:  # PIL's readers raise almost anything on a broken file
        raise DataError(f'{name}, a PIL image of mode {image.mode}, cannot be read: {error}') from error
    return from_array(pixels, channels, f'{name}, a PIL image of mode {image.mode}', f'{channels} channels')


def from_tensor(image: Tensor, channels: int, name: str) -> np.ndarray:
    """A tensor (C, H, W) or (H, W)."""
    given = f'{name}, a tensor of {str(image.dtype).removeprefix("torch.")} and shape {tuple(image.shape)}'
    image = image.detach().cpu()
    pixels = (image.float() if image.is_floating_point() else image).numpy()  # numpy knows no bfloat16
    return from_array(pixels if pixels.ndim == 2 else np.moveaxis(pixels, 0, -1), channels, given, f'({channels}, height, width)')


def from_array(image: np.ndarray, channels: int, given: str, shape: str) -> np.ndarray:
    """An array (H, W, C) or (H, W); `given` and `shape` are what messages say it is, and what shape it should have."""
    pixels = image[..., None] if image.ndim == 2 else image
    if channels == 3 and pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels.repeat(3, axis=2)
    if pixels.ndim != 3 or pixels.shape[2] != channels or not pixels.size:
        raise DataError(f'{given}: expected {shape}')
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    if pixels.dtype.kind != 'f':
        raise DataError(f'{given}: expected uint8 in [0, 255] or floats in [0, 1]; convert it, since the range of other types is unknown')
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):  # also where one is NaN
        raise DataError(
            f'{given}, has values from {low:g} to {high:g}: floats are pixels in [0, 1], before any normalisation. Divide by 255, or '
            'convert to uint8'
        )
    return np.ascontiguousarray(pixels, dtype=np.float32) * np.float32(255)


def fit(image: np.ndarray, size: tuple[int, int], resample: Image.Resampling = Image.Resampling.BICUBIC) -> np.ndarray:
    """The largest central part of an image (H, W, C) with the proportions of `size` (h, w), resized to it, antialiased."""
    if image.shape[:2] == tuple(size):
        return image
    (height, width), (rows, columns) = image.shape[:2], size
    scale = min(height / rows, width / columns)
    left, top = (width - columns * scale) / 2, (height - rows * scale) / 2
    return resize(image, size, resample, (left, top, left + columns * scale, top + rows * scale))


def to_tensor(images: list[np.ndarray]) -> Tensor:
    """Arrays (h, w, C) of one size -> tensor (B, C, h, w), the values unchanged."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
