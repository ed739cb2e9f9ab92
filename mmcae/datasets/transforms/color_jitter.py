"""Change brightness, contrast and saturation at random: torchvision's ColorJitter for images that mmcae.LoadImage read."""

import cv2
import numpy as np
import torchvision
from mmcv.transforms import BaseTransform
from PIL import Image

from ...registry import TRANSFORMS
from ...utils.errors import ConfigError, DataError


@TRANSFORMS.register_module()
class ColorJitter(BaseTransform):
    """:class:`torchvision.transforms.ColorJitter` on RGB images; mmpretrain's takes BGR.

    Computed by PIL on the whole image, as CAE v2 does before it crops (arXiv 2211.09799): contrast is relative to the image's mean. Or on
    the views, by the device that makes them (`TwoViewCrop(backend='device')`), with the same factors, order and mean.

    Required and modified key: ``img``, uint8 (H, W, 3), RGB.

    Args:
        brightness, contrast, saturation (float | tuple[float, float]): Largest change up and down from 1, or the range of the factor.
            0 leaves it as it is.
        hue (float | tuple[float, float]): Largest change, at most 0.5, or the range.
        backend (str): 'pillow'; or 'device', which draws the factors and leaves the pixels to the device: adds the key ``jitter``.

    Raises:
        ConfigError: A number is negative, a range is out of bounds, there is no such backend, or the device is to change the hue.
        DataError: The image is not an RGB image of 8 bits.
    """

    def __init__(self, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, backend='pillow'):
        try:
            self.jitter = torchvision.transforms.ColorJitter(brightness, contrast, saturation, hue)
        except (ValueError, TypeError) as error:
            raise ConfigError(f'ColorJitter: {error}') from error
        if backend not in ('pillow', 'device'):
            raise ConfigError(f"ColorJitter: backend={backend!r} is neither 'pillow' nor 'device'")
        if backend == 'device' and hue:
            raise ConfigError("ColorJitter: backend='device' does not change the hue: leave it out, or take backend='pillow'")
        self.backend = backend

    def transform(self, results):
        """See the class."""
        image = results['img']
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise DataError(
                f'ColorJitter changes RGB images of 8 bits, but {results.get("img_path", "this image")} is {image.dtype} of shape '
                f'{image.shape}: leave it out of the pipeline'
            )
        if self.backend == 'device':
            results['jitter'] = self.draw(image)
        else:
            results['img'] = np.asarray(self.jitter(Image.fromarray(image)))
        return results

    def draw(self, image):
        """Kinds, factors and the mean grey of the image, as columns of a :class:`~mmcae.datasets.crops.CropRow`."""
        jitter = self.jitter
        order, *factors, _ = jitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, None)
        kinds = [kind for kind in order.tolist() if kind < 3 and factors[kind] is not None]
        drawn = dict(grey=float(np.dot(cv2.mean(image)[:3], (0.299, 0.587, 0.114))))
        for number, kind in enumerate(kinds, 1):
            drawn |= {f'jitter_{number}': kind + 1, f'factor_{number}': factors[kind]}
        return drawn

    def __repr__(self):
        return repr(self.jitter)
