"""Decode a JPEG only as finely as its random crop needs: the box is drawn from the size in the header, before there are pixels."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags

from ...utils.errors import ConfigError

REDUCTIONS = (8, 4, 2)  # by which libjpeg can divide both sides while it decodes, for the time of fewer pixels


@dataclass(frozen=True)
class DrawnBox:
    """A random box and how coarsely the image was decoded for it.

    Args:
        box: top, left, height and width in pixels of the full image.
        full: Height and width of the full image.
        reduction: 1, 2, 4 or 8: pixels of the full image to one that was decoded, along each side.
        shape: Height and width that were decoded: those of the full image divided by the reduction, rounded up.
    """

    box: tuple[int, int, int, int]
    full: tuple[int, int]
    reduction: int
    shape: tuple[int, int]

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
        # The last row and column may hold less than `reduction` pixels; mirrored they are the first.
        if flip in ('vertical', 'diagonal'):
            top += self.shape[0] * self.reduction - self.full[0]
        if flip in ('horizontal', 'diagonal'):
            left += self.shape[1] * self.reduction - self.full[1]
        box = [edge / self.reduction for edge in (left, top, left + width, top + height)]
        x, y = math.floor(box[0]), math.floor(box[1])
        part = image[y : math.ceil(box[3]), x : math.ceil(box[2])]
        return part, (box[0] - x, box[1] - y, box[2] - x, box[3] - y)


def draft(image, crop):
    """Draw a box for an image that has been opened, and have PIL decode it no finer than the box needs.

    Only JPEGs in colour or grey that lie upright in their file are reduced; the pixels of all others are those of the full image.

    Args:
        image (PIL.Image.Image): Just opened; its size changes if it is reduced.
        crop (TwoViewCrop): Draws the box and makes views of it.

    Returns:
        DrawnBox: What it drew.
    """
    width, height = image.size
    turn = image.getexif().get(ExifTags.Base.Orientation, 1)
    full = (width, height) if turn in (5, 6, 7, 8) else (height, width)
    box = crop.sample_box(*full)
    reduction = 1
    if image.format == 'JPEG' and image.mode in ('RGB', 'L') and turn == 1:
        fits = (r for r in REDUCTIONS if all(box[2] >= r * h and box[3] >= r * w for h, w in crop.sizes))
        reduction = next(fits, 1)
    if reduction > 1:
        image.draft(None, (width // reduction, height // reduction))
    return DrawnBox(box, full, reduction, tuple(-(-side // reduction) for side in full))
