"""Read any image file as an upright array, 8-bit RGB with PIL's pixels as the authors have it; or grey, or with other channels."""

import numpy as np
from mmcv.transforms import BaseTransform
from PIL import Image

from ...registry import TRANSFORMS
from ...utils.errors import ConfigError
from .channels import read_channels
from .image_file import ImageFile, content_of
from .reduced_decoding import draw_box


@TRANSFORMS.register_module()
class LoadImage(BaseTransform):
    """Load an image file, whatever its mode, as an upright 8-bit RGB array; or with another number of channels.

    The EXIF orientation is applied. Palette, grey, CMYK and YCbCr images are converted; transparent pixels show a white background, as
    in a viewer; 16-bit values keep their high byte (no stretching per image, so that brightness stays comparable between images). Files
    of unknown range, such as 32-bit integers and floating point numbers, are refused unless ``white`` is given, and so are 16-bit files
    that would come out nearly black. Of a file with several pages or frames the first is read.

    Required keys: ``img_path``. Optional keys: ``img_bytes``, the file's content, which is read in its place. Added keys: ``img`` (uint8
    array (H, W, 3), RGB, 0 to 255; of 16-bit files with other channels float32), ``img_bytes`` (the file's content, by which
    :class:`StoredViews` knows the image), ``img_shape`` and ``ori_shape``: (H, W).

    Args:
        cache (bool): Keep every file and its decoded image in memory, for small data sets: 8,000 images of 32x32 take 25 MB and their files
            in each loader worker. Set ``persistent_workers=True`` beside it, else the cache is lost after every epoch. Defaults to False.
        channels (int): 3 for RGB; 1 for grey, of colour images the luma; any other number for TIFF files that have so many, see
            :func:`read_channels`. Defaults to 3.
        white (float, optional): The value that is white in files of more than 8 bits or of floating point numbers, such as 4095 for cameras
            of 12 bits. Values beyond it are refused. Defaults to None: the largest value of unsigned integers of up to 16 bits.
        crop (dict, optional): The config of the TwoViewCrop or OneViewCrop that follows: its box is drawn here, and JPEGs much larger than
            the views are decoded at 1/2, 1/4 or 1/8 of their size, for a fraction of the time. The pixels differ a little from those of
            the exact path, which is the default. Between the two only mirroring transforms may stand. Adds the key ``drawn_box``.

    Raises:
        DataError: The file is missing or is not an image that can be read; the message names it.
        StorageError: It cannot be read for reasons that tell nothing about its content.
        ConfigError: ``channels`` or ``white`` is not positive, or ``crop`` is set beside ``cache`` or channels other than 1 and 3.
    """

    def __init__(self, cache=False, channels=3, crop=None, white=None):
        if white is not None and not white > 0:
            raise ConfigError(f'LoadImage needs a positive value for white, got white={white}')
        if channels < 1:
            raise ConfigError(f'LoadImage needs at least one channel, got channels={channels}')
        self.cache = {} if cache else None
        if crop and (cache or channels not in (1, 3)):
            raise ConfigError('LoadImage(crop=...) decodes anew for every crop, 1 or 3 channels: leave out cache and other channels')
        self.channels, self.white = channels, white
        self.crop = TRANSFORMS.build(crop) if crop else None

    def transform(self, results):
        path, data = results['img_path'], results.get('img_bytes')
        if self.cache is not None and path in self.cache:
            image, data = self.cache[path]
        else:
            data = content_of(path) if data is None else data
            if self.crop:
                image, results['drawn_box'] = read_for_crop(path, self.crop, self.channels, data, self.white)
            else:
                image = read_image(path, self.channels, data, self.white)
            if self.cache is not None:
                self.cache[path] = image, data
                image.setflags(write=False)  # a transform that writes into its input must not change the next epoch
        results['img_bytes'] = data
        results['img'] = image
        results['img_shape'] = results['ori_shape'] = image.shape[:2]
        return results

    def __repr__(self):
        white = '' if self.white is None else f', white={self.white}'
        return f'{type(self).__name__}(cache={self.cache is not None}, channels={self.channels}, crop={self.crop}{white})'


def read_image(path, channels=3, data=None, white=None):
    """Read an image file as an upright array.

    Args:
        path (str | Path): The image file.
        channels (int): 3 for RGB, 1 for grey; others by :func:`read_channels`.
        data (bytes, optional): The file's content, if that has been read; the path is only its name then.
        white (float, optional): See :class:`LoadImage`.

    Returns:
        np.ndarray: (H, W, channels), uint8 from 0 to 255; float32 in the same range where 16-bit files have other channels.

    Raises:
        DataError: The file is missing or is not an image that can be read; the message names it.
        StorageError: It cannot be read for reasons that tell nothing about its content.
    """
    if channels not in (1, 3):
        return read_channels(path, channels, data, white)
    return to_channels(ImageFile(path, data, white).read(), channels)


def read_for_crop(path, crop, channels=3, data=None, white=None):
    """Read an image file as finely as a random crop of it needs; see :mod:`~mmcae.datasets.transforms.reduced_decoding`.

    Args:
        path (str | Path): The image file.
        crop (TwoViewCrop): Draws the box.
        channels (int): 3 for RGB, 1 for grey.
        data (bytes, optional): The file's content, if that has been read.
        white (float, optional): See :class:`LoadImage`.

    Returns:
        tuple[np.ndarray, DrawnBox]: The image, uint8 (H, W, channels), of the full size or reduced, and the box.

    Raises:
        DataError: The file is missing or is not an image that can be read; the message names it.
        StorageError: It cannot be read for reasons that tell nothing about its content.
    """
    file = ImageFile(path, data, white)
    drawn = draw_box(file, crop)
    return to_channels(file.read(drawn.reduction), channels), drawn


def to_channels(pixels, channels):
    """RGB pixels (H, W, 3) as they are, or in grey, (H, W, 1)."""
    return pixels if channels == 3 else np.array(Image.fromarray(pixels).convert('L'))[..., None]
