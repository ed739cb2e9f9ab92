"""Pictures in rows and columns with titles: what all picture sheets are made of."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

BACKGROUND, INK = 'white', '#333333'
GAP = 6
FONT_SIZE = 15


def enlarge(image: np.ndarray, side: int, smooth: bool = True) -> np.ndarray:
    """An image (h, w, 3) scaled so that its longer side has `side` pixels.

    Args:
        image: uint8.
        side: Pixels.
        smooth: Lanczos, for photographs; False repeats pixels, for label maps and for pictures whose pixels are to be seen.
    """
    height, width = image.shape[:2]
    scale = side / max(height, width)
    resample = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    return np.array(Image.fromarray(image).resize((round(width * scale), round(height * scale)), resample))


def as_rgb(image: np.ndarray) -> np.ndarray:
    """An image (h, w, C) with values in [0, 255] as uint8 (h, w, 3): of more than three channels the first three, of fewer the first."""
    shown = image[..., :3] if image.shape[2] >= 3 else image[..., :1].repeat(3, axis=2)
    return shown.clip(0, 255).round().astype(np.uint8)


def picture_sheet(
    rows: Sequence[Sequence[np.ndarray | None]],
    columns: Sequence[str],
    side: int = 144,
    smooth: bool = True,
    captions: Sequence[Sequence[str]] | None = None,
) -> Image.Image:
    """A sheet of pictures with a title over each column.

    Args:
        rows: Pictures, uint8 (h, w, 3), of any sizes; None leaves a cell empty.
        columns: Titles; those wider than their column are broken into lines.
        side: Pixels of the longer side of each picture on the sheet.
        smooth: See :func:`enlarge`.
        captions: A line of text under each picture, '' for none.
    """
    font = ImageFont.load_default(FONT_SIZE)
    small = ImageFont.load_default(FONT_SIZE - 2)
    titles = [wrap(title, side, font) for title in columns]
    line = FONT_SIZE + 5
    head = line * max(title.count('\n') + 1 for title in titles) + GAP
    foot = FONT_SIZE + 2 if captions else 0
    cells = [[None if cell is None else enlarge(cell, side, smooth) for cell in row] for row in rows]
    heights = [max(cell.shape[0] for cell in row if cell is not None) + foot for row in cells]
    sheet = Image.new('RGB', (GAP + (side + GAP) * len(columns), head + sum(heights) + GAP * len(rows) + GAP), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        centre = GAP + (side + GAP) * column + side // 2
        draw.multiline_text((centre, head - GAP // 2), title, INK, font, anchor='md', align='center')
    top = head
    for number, (row, height) in enumerate(zip(cells, heights, strict=True)):
        for column, cell in enumerate(row):
            left = GAP + (side + GAP) * column
            if cell is None:
                continue
            sheet.paste(Image.fromarray(cell), (left + (side - cell.shape[1]) // 2, top))
            if captions and captions[number][column]:
                draw.text((left + side // 2, top + cell.shape[0] + 1), captions[number][column], INK, small, anchor='ma')
        top += height + GAP
    return sheet


def wrap(text: str, width: int, font) -> str:
    """Text with line breaks so that each line takes at most `width` pixels, as far as its words allow."""
    lines = []
    for word in text.split():
        if lines and font.getlength(f'{lines[-1]} {word}') <= width:
            lines[-1] += f' {word}'
        else:
            lines.append(word)
    return '\n'.join(lines)


def save_picture(picture, path: str | Path):
    """Write a PIL image or a matplotlib figure, its folder too where needed, and say so."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(picture, Image.Image):
        picture.save(path)
    else:
        picture.savefig(path, dpi=110)
    print(f'Wrote {path}', flush=True)
