"""Masks in a COCO file, checked before pycocotools sees them: its C code takes every number for right, and reads past the end of others."""

from collections.abc import Mapping

from pycocotools import mask as coco_mask

from .values import kind, numbers, shown, whole

FEW_POINTS = 'with polygons of fewer than three points'
ODD = 'with polygons of an odd number of coordinates'
NOT_FINITE = 'with a coordinate that is infinite, not a number, or far outside of the image'
FRACTIONS = 'with coordinates from 0 to 1, as fractions of the image'
NO_PIXEL = 'with a mask of no pixel'
# Characters of a compressed mask that carry on with the number, by COCO's code: 5 bits a character, from "0" on.
CARRY = 0x20
LONGEST = 7  # characters of a number: 35 bits


class MaskError(ValueError):
    """A mask that is none; the message follows the name of its annotation."""


def check_mask(mask, size):
    """Check the mask of an object.

    Args:
        mask: What the file has as `segmentation`: polygons, a run-length encoding (RLE), or a list with encodings in it, which together
            are the object.
        size (tuple[int, int]): Height and width of the image.

    Returns:
        tuple: The mask (list of polygons with at least three points each, or a compressed RLE with a text as `counts`), or None; why there
        is none (str, or None); the box around it (left, top, right, bottom), or None; the number of polygons that were left out.

    Raises:
        MaskError: It has another type or size, or run lengths that do not add up to the image.
    """
    if isinstance(mask, Mapping):
        return *check_rle(mask, size), 0
    if not isinstance(mask, list):
        raise MaskError(f'has a `segmentation` that is {kind(mask)}; it has to be a list of polygons [x1, y1, x2, y2, ...] or an RLE')
    if not any(isinstance(part, Mapping) for part in mask):
        return check_polygons(mask, size)
    return *merge(mask, size), 0


def check_polygons(polygons, size):
    """See :func:`check_mask`. Of several polygons those that are none are left out."""
    limit, good, reason = 10 * max(size), [], FEW_POINTS
    for polygon in polygons:
        try:
            polygon = numbers(polygon)
        except ValueError:
            raise MaskError(f'has a part of `segmentation` that is no list of numbers [x1, y1, x2, y2, ...]: {shown(polygon)}') from None
        if len(polygon) < 6:
            reason = FEW_POINTS
        elif len(polygon) % 2:
            reason = ODD
        # The sum finds what is not a number wherever it stands, which min and max do not.
        elif not -limit <= min(polygon) <= max(polygon) <= limit or sum(polygon) != sum(polygon):
            reason = NOT_FINITE
        else:
            good.append(polygon)
    points = [point for polygon in good if len(polygon) < 14 for point in zip(polygon[::2], polygon[1::2], strict=True)]
    if all(len(polygon) < 14 for polygon in good) and len(set(points)) < 3:
        return None, reason, None, 0
    box = (
        min(min(polygon[::2]) for polygon in good),
        min(min(polygon[1::2]) for polygon in good),
        max(max(polygon[::2]) for polygon in good),
        max(max(polygon[1::2]) for polygon in good),
    )
    if min(box) >= 0 and max(box) <= 1:
        return None, FRACTIONS, None, 0
    return good, None, box, len(polygons) - len(good)


def check_rle(rle, size):
    """See :func:`check_mask`."""
    height, width = size
    for key in ('size', 'counts'):
        if key not in rle:
            raise MaskError(f'has a `segmentation` without `{key}`; an RLE needs `size` and `counts`')
    try:
        found = [whole(side) for side in rle['size']]
    except (TypeError, ValueError):
        found = rle['size']
    if found != [height, width]:
        raise MaskError(f'has a mask of (height, width) {shown(found)}, but its image has {[height, width]}')
    counts = rle['counts']
    if isinstance(counts, list):
        try:
            runs = [whole(run) for run in counts]
        except ValueError:
            raise MaskError('has RLE counts that are no whole numbers') from None
    elif isinstance(counts, str):
        runs = decompress(counts)
    else:
        raise MaskError(f'has RLE counts that are {kind(counts)}; they have to be a list of numbers, or a text if compressed')
    pixels = height * width
    wrong = [run for run in runs if not 0 <= run <= pixels]
    if wrong:
        raise MaskError(f'has the run length {shown(wrong[0])} in its RLE, but its image has {pixels} pixels')
    if sum(runs) != pixels:
        raise MaskError(
            f'has RLE counts that add up to {sum(runs)} pixels, but its image has {height} x {width} = {pixels} (height x width): encode '
            'the mask of this image anew'
        )
    if not any(runs[1::2]):
        return None, NO_PIXEL, None
    if isinstance(counts, list):
        packed = coco_mask.frPyObjects(dict(size=found, counts=runs), height, width)
        counts = packed['counts'].decode()
    rle = dict(size=found, counts=counts)
    left, top, right, bottom = coco_mask.toBbox(rle).tolist()
    return rle, None, (left, top, left + right, top + bottom)


def merge(parts, size):
    """The union of several masks, of which at least one is an RLE."""
    rles, reason = [], None
    for part in parts:
        mask, why, _, _ = check_mask(part if isinstance(part, Mapping) else [part], size)
        reason = reason or why
        if isinstance(mask, list):
            rles += coco_mask.frPyObjects(mask, *size)
        elif mask:
            rles.append(mask)
    if not rles:
        return None, reason, None
    return check_rle({key: value if key == 'size' else value.decode() for key, value in coco_mask.merge(rles).items()}, size)


def decompress(text):
    """The run lengths of a compressed RLE, by COCO's format: numbers of 5 bits a character, from the third on less the last but one.

    Args:
        text (str): The `counts`.

    Returns:
        list[int]: Run lengths, of background and object in turns. They may be negative, where the text is damaged.

    Raises:
        MaskError: It is no such text.
    """
    runs, value, shift = [], 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift >= 5 * LONGEST:
            raise MaskError(f'has compressed RLE counts that are damaged at {character!r}')
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & CARRY:
            continue
        if bits & 0x10:  # negative
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise MaskError('has compressed RLE counts that break off')
    return runs
