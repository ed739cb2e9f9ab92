"""Original, masked and reconstructed images on one sheet."""

from collections.abc import Sequence

from PIL import Image

from ..apis.reconstruct import Reconstruction
from .sheet import picture_sheet

COLUMNS = ('image', 'masked', 'predicted, drawn by the tokenizer', 'true targets, drawn the same way')


def reconstruction_sheet(reconstructions: Sequence[Reconstruction], side: int = 144, pairs: int = 1) -> Image.Image:
    """One row per image: the image, what the model saw, what it predicts, and what a perfect prediction would look like.

    Args:
        reconstructions: At least one.
        side: Pixels of each picture on the sheet.
        pairs: How many images stand beside each other in a row of the sheet.
    """
    rows = []
    for start in range(0, len(reconstructions), pairs):
        shown = list(reconstructions[start : start + pairs])
        row = [picture for one in shown for picture in (one.image, one.masked, one.predicted, one.tokenized)]
        rows.append(row + [None] * (pairs * len(COLUMNS) - len(row)))
    return picture_sheet(rows, COLUMNS * pairs, side)
