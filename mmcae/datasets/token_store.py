"""Random views of images with the tokens of each, drawn once: later epochs of a pretraining need no tokenizer.

A store is a folder of arrays, with one row for each image of a data set and one column for each of its views:

    box.npy    int32 (N, K, 4)           top, left, height, width of the view in pixels of the mirrored image; 0 0 0 0 if it cannot be read
    flip.npy   uint8 (N, K)              0 not mirrored, 1 horizontally, 2 vertically, 3 both
    token.npy  uint16 (N, K, rows, cols) the tokens
    name.npy   uint32 (N,)               CRC-32 of the file's name, by which a row is known to be that of an image
    store.json                           what made it, and how many rows are done

For a million images, four views and 14x14 tokens that are 1.6 GB, which are mapped into memory, not read.
"""

import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..utils.errors import ConfigError, DataError

MANIFEST = 'store.json'
FLIPS = (None, 'horizontal', 'vertical', 'diagonal')


@dataclass
class Manifest:
    """What made a store, and how far it is."""

    images: int
    views: int
    grid: tuple[int, int]
    vocab_size: int
    settings: dict
    done: int = 0
    unreadable: int = 0
    unreadable_bytes: int = 0  # of the file that lists them

    def shapes(self) -> dict[str, tuple]:
        """Name of each array -> its shape and dtype."""
        rows = (self.images, self.views)
        return dict(
            box=((*rows, 4), np.int32), flip=(rows, np.uint8), token=((*rows, *self.grid), np.uint16), name=((self.images,), np.uint32)
        )


class TokenStore:
    """A complete store, for reading.

    Args:
        folder: What `tools/dataset_converters/store_tokens.py` wrote.

    Attributes:
        manifest: A :class:`Manifest`.

    Raises:
        DataError: There is none, it is not complete, or an array is missing or has another size.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        if self.manifest.done < self.manifest.images:
            raise DataError(
                f'{folder} has the tokens of {self.manifest.done:,} of {self.manifest.images:,} images: let '
                'tools/dataset_converters/store_tokens.py go on, by the same command'
            )
        self.box, self.flip, self.token, self.name = open_arrays(self.folder, self.manifest, 'r').values()

    def view(self, row: int, path: str, number: int) -> tuple[tuple[int, int, int, int], str | None, np.ndarray]:
        """A view of an image.

        Args:
            row: Place of the image in its data set.
            path: Its file, to see that the store is about the same data set.
            number: Of the view, below `manifest.views`.

        Returns:
            Box (top, left, height, width), flip direction or None, tokens (rows, columns) as int32.

        Raises:
            ConfigError: The store is about other files.
            DataError: This one could not be read when it was made.
        """
        if row >= self.manifest.images or self.name[row] != checksum(path):
            raise ConfigError(f'{self.folder} was made for other files, or another order: its image {row} is not {path}. Make it again')
        box = tuple(map(int, self.box[row, number]))
        if not box[2]:
            raise DataError(f'{path} could not be read when {self.folder} was made: it has no tokens. Make it again, or remove the file')
        return box, FLIPS[self.flip[row, number]], self.token[row, number].astype(np.int32)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a store that may be incomplete.

    Raises:
        DataError: There is none, or it is damaged.
    """
    try:
        content = json.loads((folder / MANIFEST).read_text())
        return Manifest(**{**content, 'grid': tuple(content['grid'])})
    except FileNotFoundError:
        raise DataError(f'There is no {folder / MANIFEST}: make it with tools/dataset_converters/store_tokens.py') from None
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f'{folder / MANIFEST} cannot be read ({error}): delete {folder} and make it again') from error


def open_arrays(folder: Path, manifest: Manifest, mode: str) -> dict[str, np.ndarray]:
    """The arrays of a store by their names, mapped into memory in a mode of numpy's: 'r' or 'r+'.

    Raises:
        DataError: One is missing or has another size.
    """
    arrays = {}
    for name, (shape, dtype) in manifest.shapes().items():
        try:
            arrays[name] = np.load(folder / f'{name}.npy', mmap_mode=mode, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f'{folder / name}.npy cannot be read ({error}): delete {folder} and make it again') from error
        if arrays[name].shape != shape or arrays[name].dtype != dtype:
            raise DataError(
                f'{folder / name}.npy is {arrays[name].shape}, not {shape} as {MANIFEST} says: delete {folder} and make it again'
            )
    return arrays


def checksum(path: str) -> int:
    """CRC-32 of a file's name without its folders, which may be others on another machine."""
    return zlib.crc32(os.path.basename(path).encode(errors='surrogateescape'))
