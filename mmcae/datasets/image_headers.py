"""What the header of an image file tells, without decoding it: its size, and the EXIF orientation in which it is to be shown."""

import os
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
            size, orientation = image.size[::-1], image.getexif().get(ExifTags.Base.Orientation)
            if image.format == 'TIFF' or orientation not in range(1, 9):  # PIL has turned TIFFs already
                orientation = 1
            return ImageHeader(size, orientation, image.mode, image.format)
    except Exception:  # PIL's readers raise almost anything on a broken file; what reads the pixels will say what is wrong
        return None


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
