"""Random views of images with the tokens of each, drawn once: later epochs of a pretraining need no tokenizer.

A store is a folder of arrays, with one row for each image of a data set and one column for each of its views:

    box.npy    int32 (N, K, 4)           top, left, height, width of the view in pixels of the mirrored image; 0 0 0 0 if it cannot be read
    flip.npy   uint8 (N, K)              0 not mirrored, 1 horizontally, 2 vertically, 3 both
    token.npy  uint16 (N, K, rows, cols) the tokens
    key.npy    uint64 (N,)               hash of the file's content, by which a row is known to be that of an image; 0 if it cannot be read
    store.json                           what made it, and how many rows are done

An image finds its row by its content: files may be renamed, reordered, copied elsewhere, packed, or left out. For a million images, four
views and 14x14 tokens that are 1.6 GB, which are mapped into memory, not read.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...utils.errors import ConfigError, DataError, StorageError
from ...utils.files import patiently, read_file

MANIFEST = 'store.json'
VERSION = 2  # of the layout; the first knew images by their names
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
    version: int = VERSION

    def shapes(self) -> dict[str, tuple]:
        """Name of each array -> its shape and dtype."""
        rows = (self.images, self.views)
        return dict(
            box=((*rows, 4), np.int32), flip=(rows, np.uint8), token=((*rows, *self.grid), np.uint16), key=((self.images,), np.uint64)
        )


class TokenStore:
    """A complete store, for reading.

    Args:
        folder: What `mmcae tokens` wrote.

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
                'mmcae tokens go on by the same command'
            )
        self.box, self.flip, self.token, keys = open_arrays(self.folder, self.manifest, 'r').values()
        self.rows = np.argsort(keys, kind='stable')
        self.keys = np.asarray(keys)[self.rows]

    def row(self, content: bytes, path: str) -> int:
        """Where the views of an image are.

        Args:
            content: Of its file.
            path: Its name, for messages.

        Raises:
            ConfigError: The store knows no such image.
        """
        key = content_key(content)
        place = int(np.searchsorted(self.keys, key))
        if place == len(self.keys) or self.keys[place] != key:
            raise ConfigError(
                f'{path} is none of the {self.manifest.images:,} images that {self.folder} was made of: it is new, its content has '
                'changed, or it could not be read then. Make the store again, or take the image out of the data set'
            )
        return int(self.rows[place])

    def view(self, row: int, number: int) -> tuple[tuple[int, int, int, int], str | None, np.ndarray]:
        """A view of an image.

        Args:
            row: Of the image, by :meth:`row`.
            number: Of the view, below `manifest.views`.

        Returns:
            Box (top, left, height, width), flip direction or None, tokens (rows, columns) as int32.
        """
        box = tuple(map(int, self.box[row, number]))
        return box, FLIPS[self.flip[row, number]], self.token[row, number].astype(np.int32)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a store that may be incomplete.

    Raises:
        DataError: There is none, it is damaged, or of another version.
        StorageError: It cannot be read for reasons that tell nothing about its content.
    """
    file = folder / MANIFEST
    try:
        content = json.loads(read_file(file))
        if content.get('version', 1) == VERSION:
            return Manifest(**{**content, 'grid': tuple(content['grid'])})
    except FileNotFoundError:
        raise DataError(f'There is no {file}: make it with mmcae tokens') from None
    except StorageError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f'{file} cannot be read ({error}): delete {folder} and make it again') from error
    raise DataError(
        f'{file} is of version {content.get("version", 1)} of the layout, but this mmcae reads version {VERSION}, which knows images by '
        f'their content: delete {folder} and make it again'
    )


def open_arrays(folder: Path, manifest: Manifest, mode: str) -> dict[str, np.ndarray]:
    """The arrays of a store by their names, mapped into memory in a mode of numpy's: 'r' or 'r+'.

    Raises:
        DataError: One is missing or has another size.
    """
    arrays = {}
    for name, (shape, dtype) in manifest.shapes().items():
        file = folder / f'{name}.npy'
        try:
            arrays[name] = patiently(lambda file=file: np.load(file, mmap_mode=mode, allow_pickle=False), file)
        except StorageError:
            raise
        except (OSError, ValueError) as error:
            raise DataError(f'{file} cannot be read ({error}): delete {folder} and make it again') from error
        if arrays[name].shape != shape or arrays[name].dtype != dtype:
            raise DataError(f'{file} is {arrays[name].shape}, not {shape} as {MANIFEST} says: delete {folder} and make it again')
    return arrays


def content_key(content: bytes) -> np.uint64:
    """Hash of a file's content, never 0: two of a billion files share one with a probability of 0.03."""
    return np.uint64(int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), 'little') or 1)
