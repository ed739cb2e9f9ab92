"""Find all images below a folder, and remember them: for millions of files looking takes minutes, remembering takes a second.

The index is one file of plain arrays that is mapped into memory, so that all loader workers and processes of a machine share one copy. It
knows every folder with its time of change: a file that was added, removed or renamed changes the time of its folder, and the index is built
anew. (A file whose content changes keeps its place.)

Indexes lie in mmcae's cache, never among the images. A file there is named after the folder's path and its own content, and is never
written a second time: a job that has it mapped is not disturbed by another one, on whatever machine, that finds the folder changed.
"""

import hashlib
import json
import logging
import os
import shlex
import time
from contextlib import ExitStack, suppress

import numpy as np
from mmengine.logging import print_log

from ...utils.errors import DataError
from ...utils.files import atomic_file, cache_folder, remove_unfinished
from ...utils.locks import flock, open_descriptor
from .folder_walk import FolderWalk, time_of_change

VERSION = 2  # raise it when the layout of the file changes
UNUSED = 90 * 24 * 3600  # seconds after which an index that nobody asked for is removed
ARRAYS = {'names': np.uint8, 'ends': np.int64, 'folders': np.uint8, 'folder_ends': np.int64, 'times': np.int64}


class FolderIndex:
    """The paths of all images below a folder, in an order that depends on their names alone.

    Args:
        arrays (dict[str, np.ndarray]): `names`, all paths relative to the folder, one after the other, as bytes; `ends`, where each one
            ends; `folders` and `folder_ends`, the same for the folders; `times`, when each folder changed, in nanoseconds.
        facts (dict): `root`, `extensions`, `seconds` (how long it took), `other` (suffix -> number of other files), `hidden` and
            `repeated` (numbers of entries left out), `former` (folders that earlier versions of mmcae have left).
    """

    def __init__(self, arrays, facts):
        self.arrays, self.facts = arrays, facts

    def __len__(self):
        return len(self.arrays['ends'])

    def __getitem__(self, index):
        return os.fsdecode(_item(self.arrays['names'], self.arrays['ends'], index))

    @property
    def nbytes(self):
        """Size in memory and in the file."""
        return sum(values.nbytes for values in self.arrays.values())

    @property
    def folders(self):
        """Number of folders, the root included."""
        return len(self.arrays['folder_ends'])

    def is_current(self):
        """Whether no folder has changed since. Reads one date per folder."""
        root = self.facts['root']
        for index, known in enumerate(self.arrays['times'].tolist()):
            folder = os.fsdecode(_item(self.arrays['folders'], self.arrays['folder_ends'], index))
            try:
                if time_of_change(os.stat(os.path.join(root, folder))) != known:
                    return False
            except OSError:
                return False
        return True

    def save(self, folder, key):
        """Write the index in one step, under a name that tells its content, unless it is there.

        Args:
            folder (Path): Where to.
            key (str): What the name begins with.

        Returns:
            Path: The file.
        """
        arrays = {name: np.ascontiguousarray(self.arrays[name], dtype) for name, dtype in ARRAYS.items()}
        header = dict(version=VERSION, facts=self.facts, lengths={name: len(values) for name, values in arrays.items()})
        digest = hashlib.blake2b(digest_size=8)
        for values in arrays.values():
            digest.update(values)
        path = folder / f'{key}-{digest.hexdigest()}.index'
        if FolderIndex.load(path) is None:
            with atomic_file(path) as file:
                file.write(json.dumps(header).encode() + b'\n')
                for values in arrays.values():
                    file.write(values)
        return path

    @classmethod
    def load(cls, path):
        """Map an index into memory.

        Args:
            path (str | Path): What :meth:`save` wrote.

        Returns:
            FolderIndex | None: None where there is none, or one of another version, or a damaged one.
        """
        try:
            with open(path, 'rb') as file:
                line = file.readline()
            header = json.loads(line)
            if header['version'] != VERSION:
                return None
            data = np.memmap(path, np.uint8, 'r')
            arrays, start = {}, len(line)
            for name, dtype in ARRAYS.items():
                end = start + header['lengths'][name] * np.dtype(dtype).itemsize
                if end > len(data):
                    return None
                arrays[name], start = data[start:end].view(dtype), end
            return cls(arrays, header['facts'])
        except (OSError, ValueError, KeyError, TypeError):
            return None


def folder_index(root, extensions):
    """The index of a folder: a remembered one if nothing has changed since, else a new one.

    It is kept in `$MMCAE_CACHE/indexes` (by default `~/.cache/mmcae/indexes`), or not at all where that cannot be written. Processes that
    want the same one at the same time wait for the first to build it.

    Args:
        root (str): The folder.
        extensions (Sequence[str]): What the names of images end in, lower case, such as '.jpg'.

    Returns:
        FolderIndex: Empty if there is no image.

    Raises:
        DataError: The folder does not exist, is a file, or cannot be listed.
        StorageError: It cannot be listed because the storage fails.
    """
    if not os.path.exists(root):
        raise DataError(f'{root} does not exist: name the folder of your images (data_root in a config)')
    if not os.path.isdir(root):
        raise DataError(f'{root} is no folder: name the folder of your images (data_root in a config); a list of images goes into ann_file')
    root, extensions = os.path.abspath(root), sorted({extension.lower() for extension in extensions})
    key = hashlib.sha256(json.dumps([root, os.path.realpath(root), extensions]).encode()).hexdigest()[:16]
    with ExitStack() as stack:
        try:
            cache = cache_folder() / 'indexes'
            cache.mkdir(parents=True, exist_ok=True)
            # Where there are no locks several processes may build the same index, each a whole one.
            flock(stack.enter_context(open_descriptor(cache / f'{key}.lock')), wait=True)
        except (OSError, RuntimeError) as error:
            cache = None
            warn_of_cache(root, error)
        index = cache and kept_index(root, extensions, cache, key)
        if index is None:
            index = build_index(root, extensions)
            place = 'in memory'
            if cache:
                try:
                    clear(cache)
                    path = index.save(cache, key)
                    index, place = FolderIndex.load(path) or index, f'in {path}'
                except OSError as error:
                    warn_of_cache(root, error)
            print_log(f'{_found(index)} (indexed in {index.facts["seconds"]:.1f} s; {index.nbytes / 1e6:.1f} MB {place})', 'current')
    for folder in index.facts['former']:
        print_log(
            f'{folder} is left from an earlier version of mmcae, which kept its index there. Nothing reads it now, but other libraries '
            f'take it for a class. Remove it by: rm -r {shlex.quote(folder)}',
            'current',
            logging.WARNING,
        )
    return index


def kept_index(root, extensions, cache, key):
    """The index of a folder out of the cache, mapped into memory; None if there is none that still holds.

    Args:
        root (str): The folder, absolute.
        extensions (list[str]): Of images, sorted.
        cache (Path): The folder of indexes.
        key (str): What the names of this folder's indexes begin with.

    Returns:
        FolderIndex | None: The index.
    """
    began = time.perf_counter()
    # There are several where the folder has changed, or where machines that share the cache have other folders of this name.
    for path in sorted(cache.glob(f'{key}-*.index'), key=last_use, reverse=True):
        index = FolderIndex.load(path)
        if index is not None and (index.facts['root'], index.facts['extensions']) == (root, extensions) and index.is_current():
            with suppress(OSError):
                os.utime(path)
            print_log(f'{_found(index)} (by the index {path}, checked in {time.perf_counter() - began:.2f} s)', 'current')
            return index
    return None


def warn_of_cache(root, error):
    """Say that an index cannot be kept."""
    print_log(
        f'The index of {root} cannot be kept ({error}), so every start looks through the folder. Name a folder that can be written in the '
        'environment variable MMCAE_CACHE',
        'current',
        logging.WARNING,
    )


def last_use(path):
    """When an index was asked for; 0 if another process has just removed it."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0


def clear(cache):
    """Remove indexes that have not been asked for in a long time, and what killed processes have left."""
    remove_unfinished(cache)
    for path in cache.glob('*.index'):
        if time.time() - last_use(path) > UNUSED:
            path.unlink(missing_ok=True)


def build_index(root, extensions):
    """Look through a folder and everything below it; see :class:`~mmcae.datasets.sources.folder_walk.FolderWalk`.

    Args:
        root (str): The folder, absolute.
        extensions (Sequence[str]): What the names of images end in, lower case.

    Returns:
        FolderIndex: All images.

    Raises:
        DataError: A folder cannot be listed.
        StorageError: The storage fails.
    """
    return FolderIndex(*FolderWalk(root, tuple(extensions)).run())


def _item(data, ends, index):
    start = int(ends[index - 1]) if index else 0
    return data[start : int(ends[index])].tobytes()


def _found(index):
    return f'{len(index):,} images in {index.folders:,} folders of {index.facts["root"]}{left_out(index.facts)}'


def left_out(facts):
    """What was not taken, for the log: numbers, and of which kind."""
    parts = []
    if facts['other']:
        kinds = ', '.join(f'{suffix} {count:,}' for suffix, count in list(facts['other'].items())[:6])
        parts.append(f'{sum(facts["other"].values()):,} files with other suffixes ({kinds})')
    if facts['hidden']:
        parts.append(f'{facts["hidden"]:,} hidden entries')
    if facts['repeated']:
        parts.append(f'{facts["repeated"]:,} links to what is there already')
    return f', left out: {"; ".join(parts)}' if parts else ''
