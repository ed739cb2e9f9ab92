"""Read images of any number of channels, as microscopes and satellites write them: TIFF through tifffile."""

from io import BytesIO

import numpy as np

from ...utils.errors import DataError, DependencyError

SUFFIXES = ('.tif', '.tiff')


def read_channels(path, channels, data=None):
    """Read a TIFF file with several channels, which lie in its samples, in its pages, or both.

    Args:
        path (str | Path): A TIFF file with 8 or 16 bits: a (height, width, channels) or (channels, height, width) image, or one page for
            each channel.
        channels (int): How many are expected.
        data (bytes, optional): The file's content, if that has been read; the path is only its name then.

    Returns:
        np.ndarray: (H, W, channels). uint8 as stored; 16 bits become float32 in [0, 255] without loss (65535 is 255).

    Raises:
        DataError: The file is missing, cannot be read, or has other channels; the message names it.
        DependencyError: tifffile is not installed.
    """
    try:
        import tifffile
    except ImportError as error:
        raise DependencyError(f'Images of {channels} channels are read by tifffile: pip install tifffile') from error
    if not str(path).lower().endswith(SUFFIXES):
        raise DataError(f'{path}: images of {channels} channels are read from TIFF files only ({", ".join(SUFFIXES)})')
    try:
        with tifffile.TiffFile(path if data is None else BytesIO(data)) as file:
            # Some writers make every page an image of its own.
            apart = file.series[0].ndim == 2 and len(file.pages) == channels
            pixels = file.asarray(key=range(channels)) if apart else file.asarray()
    except FileNotFoundError as error:
        raise DataError(f'{path} is listed in the data set but does not exist') from error
    except Exception as error:  # damaged files make it raise almost anything
        raise DataError(f'{path} cannot be read as an image ({error}): repair it or remove it from the data set') from error
    pixels = np.squeeze(pixels)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim == 3 and pixels.shape[0] == channels != pixels.shape[2]:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim != 3 or pixels.shape[2] != channels:
        raise DataError(
            f'{path} has the shape {pixels.shape}, where an image of {channels} channels is expected: set channels, or remove it'
        )
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    if pixels.dtype == np.uint16:
        return np.ascontiguousarray(pixels, dtype=np.float32) / np.float32(257)
    raise DataError(f'{path} has pixels of the type {pixels.dtype}, of unknown range: store them with 8 or 16 bits')
