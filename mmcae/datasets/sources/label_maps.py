"""Read the numbers of a label map as they are in its file: before they are cut to 8 bits, and with a clear error if they are none."""

from io import BytesIO

import numpy as np
from PIL import ExifTags, Image, ImageOps

from ...utils.errors import DataError

LOSSY = ('JPEG', 'MPO')
ONE_CHANNEL = (
    'A label map has one channel, whose numbers are the classes (docs/segmentation.md, "Your own data set"); where colours stand for '
    'classes, write the number of the class in place of the colour'
)


def read_label_map(path, data, upright=True):
    """The numbers in a label map.

    Args:
        path (str): Its name, for messages.
        data (bytes): The content of the file: PNG, TIFF, BMP, GIF and what else PIL reads without loss. Of palette images the indices
            count, of 1-bit images 0 and 1.
        upright (bool): Apply the EXIF orientation of the file. Defaults to True.

    Returns:
        np.ndarray: (H, W), uint8 or larger integers.

    Raises:
        DataError: It cannot be decoded, is compressed with loss, has several channels or frames, numbers that are not whole, or grey values
            of 2 or 4 bits, which may be numbers or brightness.
    """
    try:
        image = Image.open(BytesIO(data))
        bits = sub_byte_grey(image)
        frames, form, mode = getattr(image, 'n_frames', 1), image.format, image.mode
        # PIL turns TIFF files by itself.
        if upright and form != 'TIFF' and image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            image = ImageOps.exif_transpose(image)
        labels = np.array(image)
    except Exception as error:  # PIL's readers raise almost anything on a broken file
        cause = 'PIL knows no such format' if isinstance(error, Image.UnidentifiedImageError) else error
        raise DataError(f'{path} cannot be read as a label map ({cause}): repair it or take it out of the data set') from error
    if form in LOSSY:
        raise DataError(f'{path} is a JPEG file, which changes the numbers of the classes: store label maps as PNG, from their source')
    if frames > 1:
        raise DataError(f'{path} holds {frames} images; a label map is one')
    if bits and labels.any():
        raise DataError(
            f'{path} has grey values of {bits} bits, from 0 to {2**bits - 1}, which may be classes or brightness from 0 to 255: store it '
            'with 8 bits'
        )
    return one_channel(labels, path, f', {mode}')


def one_channel(labels, path, mode=''):
    """Decoded numbers, checked to be one whole number a pixel.

    Args:
        labels (np.ndarray): (H, W), with axes of length 1 or without.
        path (str): The name of the file, for messages.
        mode (str): What the message adds to the number of channels. Defaults to ''.

    Returns:
        np.ndarray: (H, W), integers.

    Raises:
        DataError: It has several channels, or numbers that are not whole.
    """
    if labels.ndim > 2:
        channels = labels.shape[-1]
        if channels > 1:
            alike = (labels[..., :3] == labels[..., :1]).all() if channels > 2 else False
            hint = '. The three colours are equal: keep one of them' if alike else ''
            raise DataError(f'{path} has {channels} channels{mode}{hint}. {ONE_CHANNEL}')
        labels = labels[..., 0]
    if labels.dtype.kind == 'b':
        return labels.astype(np.uint8)
    if labels.dtype.kind == 'f':
        whole = labels == np.floor(labels)  # false for what is not a number
        if not (whole & np.isfinite(labels)).all():
            raise DataError(f'{path} has the value {labels[~(whole & np.isfinite(labels))][0]:g}; label maps hold whole numbers')
        # Numbers that int64 cannot hold stay as large as it can, which no class is.
        return np.clip(labels, -(2.0**62), 2.0**62).astype(np.int64)
    return labels


def sub_byte_grey(image):
    """2 or 4 for a grey image of so many bits, which PIL stretches to 0 to 255; 0 for others. Asked before it is decoded."""
    for tile in getattr(image, 'tile', ()):
        raw = tile[3] if isinstance(tile[3], str) else tile[3][0] if isinstance(tile[3], tuple) else ''
        if str(raw).startswith(('L;2', 'L;4')):
            return int(raw[2])
    return 0
