"""Read any image file as an upright 8-bit RGB array, with PIL as the authors do."""

import numpy as np
from mmcv.transforms import BaseTransform
from PIL import Image, ImageOps

from ...registry import TRANSFORMS
from ...utils.errors import DataError


@TRANSFORMS.register_module()
class LoadImage(BaseTransform):
    """Load an image file with PIL, whatever its mode, as an upright 8-bit RGB array.

    The EXIF orientation is applied. Palette, grey, CMYK and YCbCr images are converted; transparent pixels show a white background, as
    in a viewer; 16-bit grey values keep their high byte (no stretching per image, so that brightness stays comparable between images).
    Of a file with several frames the first is read.

    Required keys: ``img_path``. Added keys: ``img`` (uint8 array (H, W, 3), RGB, 0 to 255), ``img_shape`` and ``ori_shape``: (H, W).

    Args:
        cache (bool): Keep every decoded image in memory, for small data sets: 8,000 images of 32x32 take 25 MB in each loader worker.
            Set ``persistent_workers=True`` beside it, else the cache is lost after every epoch. Defaults to False.

    Raises:
        DataError: The file is missing or is not an image that can be read; the message names it.
    """

    def __init__(self, cache=False):
        self.cache = {} if cache else None

    def transform(self, results):
        path = results['img_path']
        if self.cache is None:
            image = read_rgb(path)
        else:
            image = self.cache.get(path)
            if image is None:
                image = self.cache[path] = read_rgb(path)
                image.setflags(write=False)  # a transform that writes into its input must not change the next epoch
        results['img'] = image
        results['img_shape'] = results['ori_shape'] = image.shape[:2]
        return results

    def __repr__(self):
        return f'{type(self).__name__}(cache={self.cache is not None})'


def read_rgb(path):
    """Read an image file as an upright RGB array.

    Args:
        path (str | Path): The image file.

    Returns:
        np.ndarray: uint8 array (H, W, 3), RGB, 0 to 255.

    Raises:
        DataError: The file is missing or is not an image that can be read; the message names it.
    """
    try:
        with Image.open(path) as image:
            return np.array(_to_rgb(ImageOps.exif_transpose(image)))
    except FileNotFoundError as error:
        raise DataError(f'{path} is listed in the data set but does not exist') from error
    except Exception as error:  # PIL's readers raise almost anything on a broken file
        raise DataError(f'{path} cannot be read as an image ({error}): repair it or remove it from the data set') from error


def _to_rgb(image):
    if image.mode == 'F':
        raise ValueError('pixels are floating point numbers of unknown range; store it with 8 or 16 bits')
    if image.mode.startswith('I'):
        image = _high_byte(image)
    elif image.mode in ('RGBA', 'LA', 'PA') or 'transparency' in image.info:
        image = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    return image.convert('RGB')


def _high_byte(image):
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError('pixels exceed 16 bits; store it with 8 or 16 bits')
    return Image.fromarray((values >> 8).astype(np.uint8))
