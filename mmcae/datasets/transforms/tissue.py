"""For stained tissue under a microscope: colour that varies as stains do, and turns that leave tissue what it is."""

import random

import numpy as np
from mmcv.transforms import BaseTransform

from ...registry import TRANSFORMS
from ...utils.errors import ConfigError

# What one unit of each stain absorbs of red, green and blue (Ruifrok & Johnston, 2001; the matrix of scikit-image's rgb2hed).
ABSORPTION = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])  # haematoxylin, eosin, DAB
UNMIX = np.linalg.inv(ABSORPTION)
# Optical density of each grey level by the law of Beer and Lambert. Black would be infinite; it gets the density of half a level.
DENSITY = -np.log(np.maximum(np.arange(256), 0.5) / 255).astype(np.float32)


def rgb_to_stains(image):
    """Colour deconvolution: how much of each stain lies in each pixel.

    Args:
        image (np.ndarray): uint8 (..., 3), RGB; white is glass without tissue.

    Returns:
        np.ndarray: float64 (..., 3), haematoxylin, eosin and DAB, such that natural optical density = amounts @ ABSORPTION. These are the
        values of scikit-image's rgb2hed times ln(10^6), and amounts below 0 are kept, so that nothing is lost.
    """
    return DENSITY[image].astype(np.float64) @ UNMIX


def stains_to_rgb(stains):
    """The inverse of :func:`rgb_to_stains`.

    Args:
        stains (np.ndarray): float (..., 3), amounts of haematoxylin, eosin and DAB.

    Returns:
        np.ndarray: uint8 (..., 3), RGB.
    """
    return _to_pixels(np.asarray(stains, np.float64) @ ABSORPTION)


def _to_pixels(density):
    return np.rint(255 * np.exp(-np.maximum(density, 0))).astype(np.uint8)


@TRANSFORMS.register_module()
class HEDJitter(BaseTransform):
    """Vary the amounts of the stains, as laboratories and scanners do (Tellez et al., 2018, arXiv 1808.05896).

    Each of haematoxylin, eosin and DAB becomes `amount * (1 + a) + b` with a and b drawn anew for every image. Goes before the crop, so
    that both views show the same colours.

    Required and modified key: ``img`` (uint8 array (H, W, 3), RGB).

    Args:
        scale (float): Largest |a|, below 1. Defaults to 0.1.
        shift (float): Largest |b|, in units of :func:`rgb_to_stains`; tissue has amounts around 0.2 to 2. Glass gets a tint by it.
            Defaults to 0.02.

    Raises:
        ConfigError: A range is negative, or `scale` not below 1.
    """

    def __init__(self, scale=0.1, shift=0.02):
        if not (0 <= scale < 1 and shift >= 0):
            raise ConfigError(f'HEDJitter needs 0 <= scale < 1 and shift >= 0, got scale={scale}, shift={shift}')
        self.scale, self.shift = scale, shift

    def transform(self, results):
        factors = [1 + random.uniform(-self.scale, self.scale) for _ in range(3)]
        shifts = [random.uniform(-self.shift, self.shift) for _ in range(3)]
        results['img'] = change_stains(results['img'], factors, shifts)
        return results

    def __repr__(self):
        return f'{type(self).__name__}(scale={self.scale}, shift={self.shift})'


def change_stains(image, factors, shifts):
    """An image with other amounts of its stains: `amounts * factors + shifts`.

    Unmixing, changing and mixing again is one 3x3 matrix on the optical densities.

    Args:
        image (np.ndarray): uint8 (H, W, 3), RGB.
        factors (Sequence[float]): For haematoxylin, eosin and DAB.
        shifts (Sequence[float]): For the same.

    Returns:
        np.ndarray: uint8 (H, W, 3), RGB.
    """
    matrix = (UNMIX * np.asarray(factors)) @ ABSORPTION
    return _to_pixels(DENSITY[image] @ matrix.astype(np.float32) + (np.asarray(shifts) @ ABSORPTION).astype(np.float32))


@TRANSFORMS.register_module()
class RandomRotate90(BaseTransform):
    """Turn an image by 0, 90, 180 or 270 degrees, each as likely: tissue has no top. Without a loss, unlike other angles.

    With RandomFlip(prob=0.5) before it all eight positions are equally likely. Both go before the crop, so that both views share them.

    Required and modified keys: ``img`` (array (H, W, C)), ``img_shape`` ((H, W)).
    """

    def transform(self, results):
        results['img'] = np.ascontiguousarray(np.rot90(results['img'], random.randrange(4)))
        results['img_shape'] = results['img'].shape[:2]
        return results

    def __repr__(self):
        return f'{type(self).__name__}()'
