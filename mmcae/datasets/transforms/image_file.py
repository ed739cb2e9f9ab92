"""Image files of which the header is read first and the pixels as finely as they are needed; the pixels are those that PIL gives."""

from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ...utils.errors import DataError

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
IN_RGB = getattr(cv2, 'IMREAD_COLOR_RGB', None)  # from OpenCV 4.11 on, and at full size only
REDUCTIONS = {
    1: IN_RGB or cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


class ImageFile:
    """An image file of which the header has been read.

    JPEGs are decoded by OpenCV, which has the same decoder as PIL (libjpeg-turbo) and none of the copies between PIL and numpy, which
    take longer than the decoding. Whatever is not quite ordinary goes to PIL, files that OpenCV refuses too: PIL decides what is damaged.

    Args:
        path (str | Path): The file.
        data (bytes, optional): Its content, if that has been read; the path is only its name then.

    Attributes:
        shape (tuple[int, int]): Height and width of the upright image.
        turn (tuple[bool, bool, bool]): How it becomes upright, see `TURNS`.

    Raises:
        DataError: The file is missing or is not an image; the message names it.
    """

    def __init__(self, path, data=None):
        self.path = path
        with self.named_errors():
            self.data = Path(path).read_bytes() if data is None else data
            self.image = self.open()
            self.turn = TURNS.get(self.image.getexif().get(ExifTags.Base.Orientation), TURNS[1])
        width, height = self.image.size
        self.shape = (width, height) if self.turn[2] else (height, width)

    def open(self):
        """As PIL opens it: pixels are not decoded yet."""
        try:
            return Image.open(BytesIO(self.data))
        except UnidentifiedImageError:  # whose message has the address of a file in memory, another one each time
            raise ValueError('PIL knows no such format') from None

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
            DataError: They cannot be decoded; the message names the file.
        """
        with self.named_errors():
            # Not every version of OpenCV minds if the end of a file is missing.
            pixels = self.decode_jpeg(reduction) if self.reducible and self.data.endswith(b'\xff\xd9') else None
            if pixels is not None:
                return turned(pixels, self.turn)
            if reduction > 1:
                self.image.draft(None, tuple(side // reduction for side in self.image.size))
            return np.array(to_rgb(ImageOps.exif_transpose(self.image)))

    def decode_jpeg(self, reduction):
        """RGB pixels as they lie in the file; None if OpenCV cannot decode it."""
        flags = REDUCTIONS[reduction]
        try:
            pixels = cv2.imdecode(np.frombuffer(self.data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
        except cv2.error:
            return None
        return pixels if pixels is None or flags == IN_RGB else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)

    @contextmanager
    def named_errors(self):
        """Whatever goes wrong while reading is a DataError that names the file."""
        try:
            yield
        except FileNotFoundError as error:
            raise DataError(f'{self.path} is listed in the data set but does not exist') from error
        except Exception as error:  # PIL's readers raise almost anything on a broken file
            raise DataError(f'{self.path} cannot be read as an image ({error}): repair it or remove it from the data set') from error


def turned(pixels, turn):
    """Pixels (H, W) or (H, W, channels), turned as an EXIF orientation asks for, by `TURNS`."""
    rows_reversed, columns_reversed, exchanged = turn
    pixels = pixels[:: -1 if rows_reversed else 1, :: -1 if columns_reversed else 1]
    return np.ascontiguousarray(pixels.swapaxes(0, 1) if exchanged else pixels)


def to_rgb(image):
    """A PIL image of any mode in 8-bit RGB; a ValueError where its brightness is unknown."""
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
