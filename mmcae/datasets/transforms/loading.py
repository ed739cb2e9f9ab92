"""Read any image file as an upright array, 8-bit RGB with PIL as the authors do; or grey, or with other channels."""

from contextlib import contextmanager
from io import BytesIO

import numpy as np
from mmcv.transforms import BaseTransform
from PIL import Image, ImageOps, UnidentifiedImageError

from ...registry import TRANSFORMS
from ...utils.errors import ConfigError, DataError
from .channels import read_channels
from .reduced_decoding import draft


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
        crop (dict, optional): The config of the TwoViewCrop or OneViewCrop that follows: its box is drawn here, and JPEGs much larger than
            the views are decoded at 1/2, 1/4 or 1/8 of their size, for a fraction of the time. The pixels differ a little from those of
            the exact path, which is the default. Between the two only mirroring transforms may stand. Adds the key ``drawn_box``.

    Raises:
        DataError: The file is missing or is not an image that can be read; the message names it.
        ConfigError: ``channels`` is not positive, or ``crop`` is set beside ``cache`` or channels other than 1 and 3.
    """

    def __init__(self, cache=False, channels=3, crop=None):
        if channels < 1:
            raise ConfigError(f'LoadImage needs at least one channel, got channels={channels}')
        self.cache = {} if cache else None
        if crop and (cache or channels not in (1, 3)):
            raise ConfigError('LoadImage(crop=...) decodes anew for every crop, 1 or 3 channels: leave out cache and other channels')
        self.channels = channels
        self.crop = TRANSFORMS.build(crop) if crop else None

    def transform(self, results):
        path, data = results['img_path'], results.pop('img_bytes', None)
        if self.crop:
            image, results['drawn_box'] = read_for_crop(path, self.crop, self.channels, data)
        elif self.cache is None:
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
        return f'{type(self).__name__}(cache={self.cache is not None}, channels={self.channels}, crop={self.crop})'


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
    with _opened(path, data) as image:
        return _pixels(image, channels)


def read_for_crop(path, crop, channels=3, data=None):
    """Read an image file as finely as a random crop of it needs; see :mod:`~mmcae.datasets.transforms.reduced_decoding`.

    Args:
        path (str | Path): The image file.
        crop (TwoViewCrop): Draws the box.
        channels (int): 3 for RGB, 1 for grey.
        data (bytes, optional): The file's content, if that has been read.

    Returns:
        tuple[np.ndarray, DrawnBox]: The image, uint8 (H, W, channels), of the full size or reduced, and the box.

    Raises:
        DataError: The file is missing or is not an image that can be read; the message names it.
    """
    with _opened(path, data) as image:
        drawn = draft(image, crop)
        return _pixels(image, channels), drawn


@contextmanager
def _opened(path, data):
    """The file as PIL opens it, before its pixels are decoded; whatever goes wrong meanwhile is a DataError."""
    try:
        with _open(path if data is None else BytesIO(data)) as image:
            yield image
    except FileNotFoundError as error:
        raise DataError(f'{path} is listed in the data set but does not exist') from error
    except Exception as error:  # PIL's readers raise almost anything on a broken file
        raise DataError(f'{path} cannot be read as an image ({error}): repair it or remove it from the data set') from error


def _open(file):
    try:
        return Image.open(file)
    except UnidentifiedImageError:  # whose message has the address of a file in memory, another one each time
        raise ValueError('PIL knows no such format') from None


def _pixels(image, channels):
    image = _to_rgb(ImageOps.exif_transpose(image))
    return np.array(image) if channels == 3 else np.array(image.convert('L'))[..., None]


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
