"""Decode a JPEG only as finely as its random crop needs: the box is drawn from the size in the header, before there are pixels."""

import math
from dataclasses import dataclass

import numpy as np

from ...utils.errors import ConfigError
from .image_file import REDUCTIONS, ImageFile


@dataclass(frozen=True)
class DrawnBox:
    """A random box and how coarsely the image was decoded for it.

    Args:
        box: top, left, height and width in pixels of the full image.
        full: Height and width of the full image.
        reduction: 1, 2, 4 or 8: pixels of the full image to one that was decoded, along each side.
        shape: Height and width that were decoded: those of the full image divided by the reduction, rounded up.
        origin: Where the full image begins in what was decoded, top and left, in pixels of the full image, below the reduction.
    """

    box: tuple[int, int, int, int]
    full: tuple[int, int]
    reduction: int
    shape: tuple[int, int]
    origin: tuple[int, int] = (0, 0)

    def cut(self, image: np.ndarray, flip: str | None, sizes) -> tuple[np.ndarray, tuple[float, float, float, float] | None]:
        """The part of the image that holds the box.

        Args:
            image: (H, W, C), what was decoded, mirrored or not.
            flip: How it was mirrored since: mmcv's `flip_direction`, or None. The box holds for the mirrored image.
            sizes: (height, width) of every view that is made of it.

        Returns:
            The part, and within it the box as PIL takes it (left, top, right, bottom), in fractions of pixels; None where it is all.

        Raises:
            ConfigError: The image was changed in other ways, or decoded more coarsely than a view needs.
        """
        top, left, height, width = self.box
        if image.shape[:2] != self.shape:
            raise ConfigError(
                f'LoadImage decoded {self.shape} pixels for a crop that it has drawn, but the crop gets {image.shape[:2]}: between the two '
                'only mirroring is possible. Leave out crop of LoadImage (reduced_decoding=False in the recipes)'
            )
        if self.reduction == 1:
            return image[top : top + height, left : left + width], None
        if any(height < self.reduction * h or width < self.reduction * w for h, w in sizes):
            raise ConfigError('LoadImage decoded for smaller views than the crop makes: give LoadImage.crop the settings of the crop')
        y, x = self.origin
        if flip in ('vertical', 'diagonal'):
            y = self.shape[0] * self.reduction - self.full[0] - y
        if flip in ('horizontal', 'diagonal'):
            x = self.shape[1] * self.reduction - self.full[1] - x
        top, left = top + y, left + x
        box = [edge / self.reduction for edge in (left, top, left + width, top + height)]
        x, y = math.floor(box[0]), math.floor(box[1])
        part = image[y : math.ceil(box[3]), x : math.ceil(box[2])]
        return part, (box[0] - x, box[1] - y, box[2] - x, box[3] - y)


def draw_box(file: ImageFile, crop) -> DrawnBox:
    """Draw a box for an image, and choose how coarsely to decode the image for it.

    Args:
        file: The image; only JPEGs in colour or grey are reduced.
        crop (TwoViewCrop): Draws the box and makes views of it.

    Returns:
        The box and the reduction.
    """
    box = crop.sample_box(*file.shape)
    reduction = 1
    if file.reducible:
        reduction = max(r for r in REDUCTIONS if r == 1 or all(box[2] >= r * h and box[3] >= r * w for h, w in crop.sizes))
    shape = tuple(-(-side // reduction) for side in file.shape)
    # The last row and column of the file may hold less than `reduction` pixels. Turned upright they can be the first.
    excess = [side * reduction - full for side, full in zip(shape, file.shape, strict=True)]
    rows_reversed, columns_reversed, exchanged = file.turn
    reversed_axes = (columns_reversed, rows_reversed) if exchanged else (rows_reversed, columns_reversed)
    origin = tuple(pixels if turned else 0 for pixels, turned in zip(excess, reversed_axes, strict=True))
    return DrawnBox(box, file.shape, reduction, shape, origin)
