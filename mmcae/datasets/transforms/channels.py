"""Read images of any number of channels, as microscopes and satellites write them: TIFF through tifffile."""

from io import BytesIO

import numpy as np

from ...compat import import_extra
from ...utils.errors import DataError
from .image_file import content_of, decoded
from .sample_depth import Samples, in_range

SUFFIXES = ('.tif', '.tiff')


def read_channels(path, channels, data=None, white=None):
    """Read a TIFF file with several channels, which lie in its samples, in its pages, or both.

    Args:
        path (str | Path): A TIFF file: a (height, width, channels) or (channels, height, width) image, or one page for each channel.
        channels (int): How many are expected.
        data (bytes, optional): The file's content, if that has been read; the path is only its name then.
        white (float, optional): The value that becomes 255. Defaults to None: the largest of unsigned integers of up to 16 bits; other
            kinds of numbers are refused.

    Returns:
        np.ndarray: (H, W, channels). uint8 as stored; other types become float32 in [0, 255] without loss (65535 is 255).

    Raises:
        DataError: The file is missing, cannot be read, has other channels, or values of unknown range; the message names it.
        StorageError: It cannot be read for reasons that tell nothing about its content.
        DependencyError: tifffile is not installed.
    """
    tifffile = import_extra('tifffile', f'Images of {channels} channels')
    if not str(path).lower().endswith(SUFFIXES):
        raise DataError(f'{path}: images of {channels} channels are read from TIFF files only ({", ".join(SUFFIXES)})')
    data = content_of(path) if data is None else data

    def decode():
        with tifffile.TiffFile(BytesIO(data)) as file:
            page = file.pages[0]
            # Some writers make every page an image of its own.
            apart = file.series[0].ndim == 2 and len(file.pages) == channels
            pixels = file.asarray(key=range(channels)) if apart else file.asarray()
        if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
            raise ValueError('its values are numbers of colours in a palette')
        kind = {'u': 'unsigned', 'i': 'signed', 'f': 'floating point'}.get(pixels.dtype.kind, pixels.dtype.name)
        inverted = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
        return pixels, Samples(page.bitspersample, kind, inverted)

    pixels, samples = decoded(path, decode)
    pixels = np.squeeze(pixels)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim == 3 and pixels.shape[0] == channels != pixels.shape[2]:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim != 3 or pixels.shape[2] != channels:
        raise DataError(
            f'{path} has the shape {pixels.shape}, where an image of {channels} channels is expected: set channels, or remove it'
        )
    if pixels.dtype == np.uint8 and white is None:
        return np.ascontiguousarray(255 - pixels if samples.inverted else pixels)
    return decoded(path, lambda: np.ascontiguousarray(in_range(pixels, samples, white) * np.float32(255)))
