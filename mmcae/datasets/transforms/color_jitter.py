"""Change brightness, contrast and saturation at random: torchvision's ColorJitter for images that mmcae.LoadImage read."""

import numpy as np
import torchvision
from mmcv.transforms import BaseTransform
from PIL import Image

from ...registry import TRANSFORMS
from ...utils.errors import ConfigError, DataError


@TRANSFORMS.register_module()
class ColorJitter(BaseTransform):
    """:class:`torchvision.transforms.ColorJitter` on RGB images; mmpretrain's takes BGR.

    Computed by PIL on the whole image, as CAE v2 does before it crops (arXiv 2211.09799): contrast is relative to the image's mean.

    Required and modified key: ``img``, uint8 (H, W, 3), RGB.

    Args:
        brightness, contrast, saturation (float | tuple[float, float]): Largest change up and down from 1, or the range of the factor.
            0 leaves it as it is.
        hue (float | tuple[float, float]): Largest change, at most 0.5, or the range.

    Raises:
        ConfigError: A number is negative, or a range is out of bounds.
        DataError: The image is not an RGB image of 8 bits.
    """

    def __init__(self, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0):
        try:
            self.jitter = torchvision.transforms.ColorJitter(brightness, contrast, saturation, hue)
        except (ValueError, TypeError) as error:
            raise ConfigError(f'ColorJitter: {error}') from error

    def transform(self, results):
        """See the class."""
        image = results['img']
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise DataError(
                f'ColorJitter changes RGB images of 8 bits, but {results.get("img_path", "this image")} is {image.dtype} of shape '
                f'{image.shape}: leave it out of the pipeline'
            )
        results['img'] = np.asarray(self.jitter(Image.fromarray(image)))
        return results

    def __repr__(self):
        return repr(self.jitter)
