"""Brightness in files of more than 8 bits, of signed integers or floating point numbers: right where the range is known, else refused."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

SIGNED, FLOATING = 2, 3  # TIFF's SampleFormat
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # TIFF's tags
DARK = 16  # levels of 255: a file of 16 bits that stays below them is taken for one of 12 bits or less
REMEDY = "tell which value is white (LoadImage's white=..., pack_images.py --white), or store it with 8 bits"


class UnknownRangeError(ValueError):
    """A file that is whole, but does not tell how bright its pixels are; the message tells what to do."""


@dataclass(frozen=True)
class Samples:
    """How a file holds brightness.

    Args:
        bits: Of each sample.
        kind: 'unsigned', 'signed' or 'floating point'.
        inverted: 0 is white, and PIL leaves that to its caller.
    """

    bits: int = 8
    kind: str = 'unsigned'
    inverted: bool = False


def samples_of(image: Image.Image) -> Samples:
    """How a PIL image holds brightness, by its file's header, or by its mode where it comes from no file."""
    tags = getattr(image, 'tag_v2', None)
    if image.format == 'TIFF' and tags is not None:
        formats = tags.get(SAMPLE_FORMAT, (1,))
        kind = 'floating point' if FLOATING in formats else 'signed' if SIGNED in formats else 'unsigned'
        return Samples(max(tags.get(BITS_PER_SAMPLE, (1,))), kind, image.mode[0] in 'IF' and tags.get(PHOTOMETRIC) == 0)
    if image.mode == 'F':
        return Samples(32, 'floating point')
    if image.mode == 'I' and image.format not in ('PNG', 'PPM'):  # which PIL widens from 16 bits
        return Samples(32, 'signed')
    return Samples(16 if image.mode[0] == 'I' or ';16' in str(getattr(image, 'tile', '')) else 8)


def in_range(values: np.ndarray, samples: Samples, white: float | None = None) -> np.ndarray:
    """Brightness as shares of white.

    Args:
        values: As they are in the file, any shape and type.
        samples: How it holds them.
        white: The value that is white; None for the largest of unsigned integers of up to 16 bits.

    Returns:
        float32 in [0, 1], of the same shape.

    Raises:
        UnknownRangeError: The range is unknown, or the values do not lie in it.
    """
    top = top_of(values, samples, white)
    shares = values.astype(np.float32) / np.float32(top)
    return 1 - shares if samples.inverted else shares


def eight_bits(values: np.ndarray, samples: Samples, white: float | None = None) -> np.ndarray:
    """The same as uint8, of integers by their upper bits.

    Raises:
        UnknownRangeError: As :func:`in_range`; or 16 bits are assumed, and hardly anything would be left of the image then.
    """
    top = top_of(values, samples, white)
    steps = top if samples.kind == 'floating point' else top + 1
    levels = np.minimum(values * (256 / steps), 255).astype(np.uint8)
    if white is None and samples.bits == 16 and values.any() and levels.max() < DARK:
        raise UnknownRangeError(
            f'its {described(samples)} reach only {values.max()} of {top} and would be nearly black: {REMEDY}. white=4095 is right for '
            'cameras of 12 bits, white=65535 where it is that dark'
        )
    return 255 - levels if samples.inverted else levels


def top_of(values: np.ndarray, samples: Samples, white: float | None) -> float:
    """The value that is white; an UnknownRangeError if it is unknown, or the values go beyond it or below 0."""
    if white is None and (samples.kind != 'unsigned' or samples.bits > 16):
        raise UnknownRangeError(f'its {described(samples)} are of unknown range: {REMEDY}')
    top = 2**samples.bits - 1 if white is None else white
    lowest, highest = values.min(), values.max()
    if not (lowest >= 0 and highest <= top):  # also where one is NaN
        raise UnknownRangeError(f'its values go from {lowest:g} to {highest:g}, beyond black, 0, and white, {top:g}: {REMEDY}')
    return top


def described(samples: Samples) -> str:
    """In words, such as '32-bit signed numbers'."""
    return f'{samples.bits}-bit {samples.kind} numbers'
