"""Image files of which the header is read first and the pixels as finely as they are needed; the pixels are those that PIL gives."""

import logging
from io import BytesIO

import cv2
import numpy as np
from mmengine.logging import print_log
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ...utils.errors import DataError, StorageError
from ...utils.files import is_unmounted, patiently, read_file
from .sample_depth import DARK, UnknownRangeError, eight_bits, samples_of

# What an EXIF orientation asks for: are rows reversed, are columns reversed, and are the two exchanged after that?
TURNS = {
    1: (False, False, False),
    2: (False, True, False),
    3: (True, True, False),
    4: (True, False, False),
    5: (False, False, True),
    6: (True, False, True),
    7: (True, True, True),
    8: (False, True, True),
}
WIDTH_HEIGHT, PLANES = (256, 257), 284  # TIFF's tags
COLOURS = (
    '1',
    'L',
    'P',
    'RGB',
    'RGBA',
    'RGBX',
    'RGBa',
    'LA',
    'La',
    'PA',
    'CMYK',
    'YCbCr',
    'HSV',
)  # of PIL's modes those that convert to RGB
IN_RGB = getattr(cv2, 'IMREAD_COLOR_RGB', None)  # from OpenCV 4.11 on, and at full size only
REDUCTIONS = {
    1: IN_RGB or cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
_told_of_pages = []


class ImageFile:
    """An image file of which the header has been read.

    JPEGs are decoded by OpenCV, which has the same decoder as PIL (libjpeg-turbo) and none of the copies between PIL and numpy, which
    take longer than the decoding. Whatever is not quite ordinary goes to PIL, files that OpenCV refuses too: PIL decides what is damaged.

    Args:
        path (str | Path): The file.
        data (bytes, optional): Its content, if that has been read; the path is only its name then.
        white (float, optional): In files of more than 8 bits, or of floating point numbers, the value that is white. Defaults to None: the
            largest of unsigned integers of up to 16 bits; others are refused.

    Attributes:
        data (bytes): The file's content.
        shape (tuple[int, int]): Height and width of the upright image.
        turn (tuple[bool, bool, bool]): How it becomes upright, see `TURNS`.

    Raises:
        DataError: The file is missing or is not an image; the message names it.
        StorageError: It cannot be read for reasons that tell nothing about its content.
    """

    def __init__(self, path, data=None, white=None):
        self.path, self.white = path, white
        self.data = content_of(path) if data is None else data
        self.image = decoded(path, self.open)
        width, height = self.image.size
        if self.image.format == 'TIFF':
            width, height = (self.image.tag_v2[tag] for tag in WIDTH_HEIGHT)  # PIL has exchanged them where it will turn the image
        self.shape = (width, height) if self.turn[2] else (height, width)

    def open(self):
        """As PIL opens it: pixels are not decoded yet."""
        try:
            image = Image.open(BytesIO(self.data))
        except UnidentifiedImageError:  # whose message has the address of a file in memory, another one each time
            raise ValueError('PIL knows no such format') from None
        self.samples = samples_of(image)
        self.turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation), TURNS[1])
        if image.format == 'TIFF' and image.is_animated:
            tell_of_pages(self.path)
        return image

    @property
    def reducible(self):
        """Whether it can be decoded at a fraction of its size: JPEGs in colour or grey can."""
        return self.image.format == 'JPEG' and self.image.mode in ('RGB', 'L')

    def read(self, reduction=1):
        """Decode the pixels.

        Args:
            reduction (int): 1; where the file is reducible also 2, 4 or 8, by which both sides are divided, rounded up.

        Returns:
            np.ndarray: uint8 array (H, W, 3), RGB, 0 to 255, upright.

        Raises:
            DataError: They cannot be decoded, or their range is unknown; the message names the file.
            StorageError: There is not enough memory.
        """
        return decoded(self.path, lambda: self.decode(reduction))

    def decode(self, reduction):
        # Not every version of OpenCV minds if the end of a file is missing.
        pixels = self.decode_jpeg(reduction) if self.reducible and self.data.endswith(b'\xff\xd9') else None
        if pixels is not None:
            return turned(pixels, self.turn)
        if reduction > 1:
            self.image.draft(None, tuple(side // reduction for side in self.image.size))
        pixels = np.array(to_rgb(self.image, self.white))
        if self.samples.bits > 8 and self.image.mode in ('RGB', 'RGBA') and (self.white is not None or pixels.max() < DARK):
            return eight_bits(self.deep_colour(pixels), self.samples, self.white)
        return pixels

    def deep_colour(self, upper):
        """Colours of 16 bits, uint16 (H, W, 3), upright: of these PIL has the upper 8 alone, and OpenCV turns some files and others not."""
        values = cv2.imdecode(np.frombuffer(self.data, np.uint8), cv2.IMREAD_UNCHANGED)
        if values is not None and values.dtype == np.uint16 and values.ndim == 3 and values.shape[2] == 3:
            values = cv2.cvtColor(values, cv2.COLOR_BGR2RGB)
            for candidate in (values, turned(values, self.turn)):
                if np.array_equal(candidate >> 8, upper):
                    return candidate
        raise UnknownRangeError('it is nearly black without the lower half of its 16 bits, which cannot be read: store it with 8 bits')

    def decode_jpeg(self, reduction):
        """RGB pixels as they lie in the file; None if OpenCV cannot decode it."""
        flags = REDUCTIONS[reduction]
        try:
            pixels = cv2.imdecode(np.frombuffer(self.data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
        except cv2.error:
            return None
        return pixels if pixels is None or flags == IN_RGB else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def turned(pixels, turn):
    """Pixels (H, W) or (H, W, channels), turned as an EXIF orientation asks for, by `TURNS`."""
    rows_reversed, columns_reversed, exchanged = turn
    pixels = pixels[:: -1 if rows_reversed else 1, :: -1 if columns_reversed else 1]
    return np.ascontiguousarray(pixels.swapaxes(0, 1) if exchanged else pixels)


def content_of(path):
    """The bytes of a file of a data set; a DataError if it is not there, a StorageError if it, or its whole file system, cannot be read."""
    try:
        return read_file(path)
    except FileNotFoundError as error:
        if is_unmounted(path):
            raise StorageError(f'{path} does not exist, and the folder above is empty: is its file system mounted?') from error
        raise DataError(f'{path} is listed in the data set but does not exist') from error


def decoded(path, action):
    """What comes of decoding a file's content. Whatever goes wrong is a DataError that names the file, except for a lack of memory."""
    try:
        return patiently(action, path)
    except StorageError:
        raise
    except UnknownRangeError as error:
        raise DataError(f'{path} cannot be read as an image: {error}') from error
    except Exception as error:  # PIL's readers raise almost anything on a broken file
        raise DataError(f'{path} cannot be read as an image ({error}): repair it or remove it from the data set') from error


def tell_of_pages(path):
    """Say, once in a process, that only the first page of a file is read."""
    if not _told_of_pages:
        _told_of_pages.append(path)
        print_log(f'{path} has several pages. The first is read, of this file and of all others', 'current', logging.WARNING)


def to_rgb(image, white=None):
    """A PIL image of any mode, upright and in 8-bit RGB.

    Args:
        image (PIL.Image.Image): As it was opened.
        white (float, optional): See :class:`ImageFile`; for grey images.

    Returns:
        PIL.Image.Image: Of mode RGB.

    Raises:
        UnknownRangeError: Its brightness or its colours are unknown.
    """
    samples, mode = samples_of(image), image.mode
    grey = mode[0] in 'IF'
    if not grey and mode not in COLOURS:
        raise UnknownRangeError(f'it has the colours of mode {mode}: store it as RGB')
    if not grey and samples.kind != 'unsigned':
        raise UnknownRangeError(f'its {samples.bits}-bit {samples.kind} numbers are of unknown range: store it with unsigned 8 bits')
    if not grey and samples.bits > 8 and getattr(image, 'tag_v2', {}).get(PLANES) == 2:
        raise UnknownRangeError('its 16-bit colours lie in planes, which PIL mixes up: store it with 8 bits, or interleaved')
    image = ImageOps.exif_transpose(image)
    if grey:
        image = Image.fromarray(eight_bits(np.asarray(image), samples, white))
    elif mode in ('RGBA', 'LA', 'PA', 'RGBa', 'La') or 'transparency' in image.info:
        image = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    return image.convert('RGB')
