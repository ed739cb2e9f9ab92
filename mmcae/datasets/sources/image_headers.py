"""What the header of an image file tells, without decoding it: its size, and the EXIF orientation in which it is to be shown."""

import os
import struct
from dataclasses import dataclass

from PIL import ExifTags, Image

# Of orientations 2 to 4 and of square images the size does not tell whether labels were drawn on the upright or on the stored pixels.
UPRIGHT = (
    'Store the image upright (ImageMagick: mogrify -auto-orient, which removes the tag) if the labels were drawn on the upright image, '
    "or read it by LoadImageFromFile(color_type='color_ignore_orientation') if they were drawn on the pixels as they are stored"
)


@dataclass(frozen=True)
class ImageHeader:
    """The header of an image file.

    Attributes:
        stored (tuple[int, int]): Height and width of the pixels as they are stored.
        orientation (int): By EXIF, 1 to 8; 1 is upright.
        mode (str): PIL's.
        format (str): PIL's, such as "PNG".
    """

    stored: tuple
    orientation: int
    mode: str
    format: str

    @property
    def upright(self) -> tuple:
        """Height and width of the upright image."""
        return self.stored[::-1] if self.orientation > 4 else self.stored

    @property
    def ambiguous(self) -> bool:
        """Whether turning it upright leaves its size as it is, so that nothing tells how labels lie on it."""
        return self.orientation != 1 and self.upright == self.stored


def read_header(path: str) -> ImageHeader | None:
    """The header of a local image file, or None if there is none that PIL can read."""
    if '://' in path:
        return None
    try:
        with Image.open(path) as image:
            size, orientation = image.size[::-1], exif_orientation(image, path)
            if image.format == 'TIFF' and orientation > 4:  # of which PIL gives the upright size
                size = size[::-1]
            return ImageHeader(size, orientation, image.mode, image.format)
    except Exception:  # PIL's readers raise almost anything on a broken file; what reads the pixels will say what is wrong
        return None


def exif_orientation(image: Image.Image, path: str) -> int:
    """The orientation that OpenCV applies, 1 to 8. PIL's `getexif` would decode PNG files, and take that of XMP, which OpenCV does not."""
    if image.format == 'TIFF':
        exif = image.getexif()
    elif image.format in ('JPEG', 'MPO', 'PNG', 'WEBP'):
        exif = Image.Exif()
        exif.load(image.info.get('exif') or (png_exif(path) if image.format == 'PNG' else b''))
    else:
        return 1
    orientation = exif.get(ExifTags.Base.Orientation)
    return orientation if orientation in range(1, 9) else 1


def png_exif(path: str) -> bytes:
    """The content of the chunk eXIf of a PNG file, which may stand behind the pixels; b'' if there is none."""
    with open(path, 'rb') as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack('>I4s', head)
            if kind == b'eXIf':
                return file.read(length)
            file.seek(length + 4, os.SEEK_CUR)  # over the checksum too
    return b''


def turns_upright(transforms) -> bool:
    """Whether the pipeline's LoadImageFromFile applies the EXIF orientation."""
    for transform in transforms:
        if hasattr(transform, 'color_type'):
            backend = getattr(transform, 'imdecode_backend', None)
            return transform.color_type in ('color', 'grayscale') and backend not in ('turbojpeg', 'tifffile')
    return True


def missing_files(paths) -> list[str]:
    """Those of local paths where there is no file. Every folder is listed once, which is much faster than to ask for every file."""
    folders, missing = {}, []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = set(os.listdir(folder or '.')) if os.path.isdir(folder or '.') else set()
        if name not in folders[folder] and '://' not in path:
            missing.append(path)
    return missing


def spread(count: int, most: int | None) -> range:
    """Evenly spread indices from 0 to count - 1, at most so many; all of them for None."""
    return range(0, count, -(-count // most) if most else 1)
