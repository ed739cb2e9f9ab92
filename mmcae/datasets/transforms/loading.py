"""Read any image file as an upright array, 8-bit RGB with PIL as the authors do; or grey, or with other channels."""

from io import BytesIO

import numpy as np
from mmcv.transforms import BaseTransform
from PIL import Image, ImageOps, UnidentifiedImageError

from ...registry import TRANSFORMS
from ...utils.errors import ConfigError, DataError
from .channels import read_channels


@TRANSFORMS.register_module()
class LoadImage(BaseTransform):
    """Load an image file with PIL, whatever its mode, as an upright 8-bit RGB array; or with another number of channels.

    The EXIF orientation is applied. Palette, grey, CMYK and YCbCr images are converted; transparent pixels show a white background, as
    in a viewer; 16-bit grey values keep their high byte (no stretching per image, so that brightness stays comparable between images).
    Of a file with several frames the first is read.

    Required keys: ``img_path``. Optional keys: ``img_bytes``, the file's content, which is read in its place and taken out. Added keys:
    ``img`` (uint8 array (H, W, 3), RGB, 0 to 255; of 16-bit files with other channels float32), ``img_shape`` and ``ori_shape``: (H, W).

    Args:
        cache (bool): Keep every decoded image in memory, for small data sets: 8,000 images of 32x32 take 25 MB in each loader worker.
            Set ``persistent_workers=True`` beside it, else the cache is lost after every epoch. Defaults to False.
        channels (int): 3 for RGB; 1 for grey, of colour images the luma; any other number for TIFF files that have so many, see
            :func:`read_channels`. Defaults to 3.

    Raises:
        DataError: The file is missing or is not an image that can be read; the message names it.
        ConfigError: ``channels`` is not positive.
    """

    def __init__(self, cache=False, channels=3):
        if channels < 1:
            raise ConfigError(f'LoadImage needs at least one channel, got channels={channels}')
        self.cache = {} if cache else None
        self.channels = channels

    def transform(self, results):
        path, data = results['img_path'], results.pop('img_bytes', None)
        if self.cache is None:
            image = read_image(path, self.channels, data)
        else:
            image = self.cache.get(path)
            if image is None:
                image = self.cache[path] = read_image(path, self.channels, data)
                image.setflags(write=False)  # a transform that writes into its input must not change the next epoch
        results['img'] = image
        results['img_shape'] = results['ori_shape'] = image.shape[:2]
        return results

    def __repr__(self):
        return f'{type(self).__name__}(cache={self.cache is not None}, channels={self.channels})'


def read_image(path, channels=3, data=None):
    """Read an image file as an upright array.

    Args:
        path (str | Path): The image file.
        channels (int): 3 for RGB, 1 for grey; others by :func:`read_channels`.
        data (bytes, optional): The file's content, if that has been read; the path is only its name then.

    Returns:
        np.ndarray: (H, W, channels), uint8 from 0 to 255; float32 in the same range where 16-bit files have other channels.

    Raises:
        DataError: The file is missing or is not an image that can be read; the message names it.
    """
    if channels not in (1, 3):
        return read_channels(path, channels, data)
    try:
        with _open(path if data is None else BytesIO(data)) as image:
            image = _to_rgb(ImageOps.exif_transpose(image))
            return np.array(image) if channels == 3 else np.array(image.convert('L'))[..., None]
    except FileNotFoundError as error:
        raise DataError(f'{path} is listed in the data set but does not exist') from error
    except Exception as error:  # PIL's readers raise almost anything on a broken file
        raise DataError(f'{path} cannot be read as an image ({error}): repair it or remove it from the data set') from error


def _open(file):
    try:
        return Image.open(file)
    except UnidentifiedImageError:  # whose message has the address of a file in memory, another one each time
        raise ValueError('PIL knows no such format') from None


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
