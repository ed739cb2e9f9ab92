"""Find all images below a folder, and remember them: for millions of files looking takes minutes, remembering takes a second.

The index is one file of plain arrays that is mapped into memory, so that all loader workers and processes of a machine share one copy. It
knows every folder with its time of change: a file that was added, removed or renamed changes the time of its folder, and the index is built
anew. (A file whose content changes keeps its place.)
"""

import fcntl
import hashlib
import json
import os
import time
from array import array
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from mmengine.logging import print_log

from ..utils.errors import DataError

VERSION = 1  # raise it when the layout of the file changes
# A folder that changed this shortly before it was read could change again without another time; it is not trusted the next time.
CLOCK_TICK = 2e9  # nanoseconds, the coarsest clock of a file system in use
PROGRESS = 5  # seconds between two lines about how far it is
ARRAYS = {'names': np.uint8, 'ends': np.int64, 'folders': np.uint8, 'folder_ends': np.int64, 'times': np.int64}


class FolderIndex:
    """The paths of all images below a folder, in an order that depends on their names alone.

    Args:
        arrays (dict[str, np.ndarray]): `names`, all paths relative to the folder, one after the other, as bytes; `ends`, where each one
            ends; `folders` and `folder_ends`, the same for the folders; `times`, when each folder changed, in nanoseconds.
        facts (dict): `root`, `extensions`, `seconds` (how long it took), `other` (suffix -> number of other files), `hidden` and
            `repeated` (numbers of entries left out).
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
                if os.stat(os.path.join(root, folder)).st_mtime_ns != known:
                    return False
            except OSError:
                return False
        return True

    def save(self, path):
        """Write the index in one step, so that nobody reads half of it."""
        arrays = {name: np.ascontiguousarray(self.arrays[name], dtype) for name, dtype in ARRAYS.items()}
        header = dict(version=VERSION, facts=self.facts, lengths={name: len(values) for name, values in arrays.items()})
        line = json.dumps(header).encode() + b'\n'
        partial = f'{path}.{os.getpid()}'
        with open(partial, 'wb') as file:
            file.write(line)
            for values in arrays.values():
                file.write(values.tobytes())
        os.replace(partial, path)

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

    It is kept in `.mmcae/` in the folder itself, or where that cannot be written in `$MMCAE_CACHE/indexes` (by default
    `~/.cache/mmcae/indexes`). Processes that want the same one at the same time wait for the first to build it.

    Args:
        root (str): The folder.
        extensions (Sequence[str]): What the names of images end in, lower case, such as '.jpg'.

    Returns:
        FolderIndex: Empty if there is no image.

    Raises:
        DataError: The folder does not exist, is a file, or cannot be listed.
    """
    if not os.path.exists(root):
        raise DataError(f'{root} does not exist: set data_root to the folder of your images')
    if not os.path.isdir(root):
        raise DataError(f'{root} is no folder: set data_root to the folder of your images; a list of images goes into ann_file')
    root, extensions = os.path.abspath(root), sorted({extension.lower() for extension in extensions})
    with _place(root, extensions) as path:
        began = time.perf_counter()
        index = FolderIndex.load(path)
        if index is not None and index.facts['extensions'] == extensions and index.facts['root'] == root and index.is_current():
            looked = time.perf_counter() - began
            print_log(f'{_found(index)} (by the index {path}, checked in {looked:.2f} s)', 'current')
            return index
        index = build_index(root, extensions)
        index.save(path)
        index = FolderIndex.load(path) or index
    print_log(f'{_found(index)} (indexed in {index.facts["seconds"]:.1f} s; {index.nbytes / 1e6:.1f} MB in {path})', 'current')
    return index


def build_index(root, extensions):
    """Look through a folder and everything below it.

    Names that begin with a dot are left out. Symbolic links are followed, but no folder is read twice and no image is taken twice: what
    lies in the folder itself comes first, links come after it.

    Args:
        root (str): The folder, absolute.
        extensions (Sequence[str]): What the names of images end in, lower case.

    Returns:
        FolderIndex: All images.

    Raises:
        DataError: A folder cannot be listed.
    """
    return _Walk(root, tuple(extensions)).run()


class _Walk:
    """One pass over a folder: real folders depth first and sorted by name, then linked folders, then linked files."""

    def __init__(self, root, extensions):
        self.root, self.extensions = root, extensions
        self.names, self.ends = bytearray(), array('q')
        self.folders, self.folder_ends, self.times = bytearray(), array('q'), array('q')
        self.read = set()  # (device, inode) of the folders
        self.linked_folders, self.linked_files = [], []
        self.other, self.hidden, self.repeated = Counter(), 0, 0

    def run(self):
        began = self.told = time.perf_counter()
        self.descend('')
        while self.linked_folders:
            self.descend(self.linked_folders.pop(0))
        self.add_linked_files()
        arrays = dict(
            names=np.frombuffer(self.names, np.uint8),
            ends=np.asarray(self.ends),
            folders=np.frombuffer(self.folders, np.uint8),
            folder_ends=np.asarray(self.folder_ends),
            times=np.asarray(self.times),
        )
        facts = dict(
            root=self.root,
            extensions=list(self.extensions),
            seconds=time.perf_counter() - began,
            other=dict(self.other.most_common()),
            hidden=self.hidden,
            repeated=self.repeated,
        )
        return FolderIndex(arrays, facts)

    def descend(self, top):
        stack = [top]
        while stack:
            folder = stack.pop()
            stack += [os.path.join(folder, name) for name in reversed(self.read_folder(folder))]

    def read_folder(self, folder):
        """Note the images of one folder; returns the names of the folders in it."""
        path = os.path.join(self.root, folder)
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in self.read:
                self.repeated += 1
                return []
            self.read.add((status.st_dev, status.st_ino))
            now = time.time_ns()
            with os.scandir(path) as entries:
                images, folders = self.sort_entries(folder, entries)
        except OSError as error:
            raise DataError(f'{path} cannot be listed ({error.strerror}): change its permissions, or move it elsewhere') from error
        self.folders += os.fsencode(folder)
        self.folder_ends.append(len(self.folders))
        self.times.append(status.st_mtime_ns if now - status.st_mtime_ns > CLOCK_TICK else -1)
        for name in images:
            self.add(os.path.join(folder, name))
        if time.perf_counter() - self.told > PROGRESS:
            self.told = time.perf_counter()
            print_log(f'Looking for images: {len(self.ends):,} so far, in {len(self.folder_ends):,} folders; now in {path}', 'current')
        return folders

    def sort_entries(self, folder, entries):
        images, folders = [], []
        for entry in sorted(entries, key=lambda entry: entry.name):
            name = entry.name
            if name.startswith('.'):
                self.hidden += name != '.mmcae'  # our own is no file of the user's
            elif entry.is_symlink():
                path = os.path.join(folder, name)
                if entry.is_dir():
                    self.linked_folders.append(path)
                elif self.is_image(name):
                    self.linked_files.append(path)
            elif entry.is_dir():
                folders.append(name)
            elif not entry.is_file():  # a pipe or a device, whatever its name
                self.other['no regular file'] += 1
            elif self.is_image(name):
                images.append(name)
        return images, folders

    def is_image(self, name):
        if name.lower().endswith(self.extensions):
            return True
        self.other[os.path.splitext(name)[1].lower() or 'no suffix'] += 1
        return False

    def add(self, path):
        self.names += os.fsencode(path)
        self.ends.append(len(self.names))

    def add_linked_files(self):
        """Linked images, unless the file they lead to is there already; broken links stay in and show when they are read."""
        taken = set()
        for path in sorted(self.linked_files):
            target = os.path.realpath(os.path.join(self.root, path))
            if os.path.isfile(target) and (target in taken or self.has(target)):
                self.repeated += 1
            else:
                taken.add(target)
                self.add(path)

    def has(self, target):
        """Whether a file has been added as a member of a folder that was read."""
        name = os.path.basename(target)
        try:
            status = os.stat(os.path.dirname(target))
        except OSError:
            return False
        return (status.st_dev, status.st_ino) in self.read and not name.startswith('.') and name.lower().endswith(self.extensions)


def _item(data, ends, index):
    start = int(ends[index - 1]) if index else 0
    return data[start : int(ends[index])].tobytes()


@contextmanager
def _place(root, extensions):
    """Where the index of a folder is kept, locked against other processes."""
    own = Path(root) / '.mmcae'
    key = hashlib.sha256(json.dumps([root, extensions]).encode()).hexdigest()[:12]
    cache = Path(os.environ.get('MMCAE_CACHE') or Path.home() / '.cache' / 'mmcae') / 'indexes'
    problems = []
    for folder in (own, cache):
        try:
            if folder == own and not own.exists():
                _make_unnoticed(own)
            folder.mkdir(parents=True, exist_ok=True)
            lock = open(folder / f'{key}.lock', 'w')
            break
        except OSError as error:
            problems.append(f'{folder}: {error.strerror}')
    else:
        raise DataError(
            f'The index of {root} can be kept neither in {problems[0]}, nor in {problems[1]}: name a folder that can be written in the '
            'environment variable MMCAE_CACHE'
        )
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            pass  # a network file system without locks: several processes may build the same index, each a whole one
        yield folder / f'{key}.index'


def _make_unnoticed(folder):
    """Make a folder and leave its parent's time of change as it was: nothing of the user's has changed."""
    before = os.stat(folder.parent)
    folder.mkdir()
    try:
        os.utime(folder.parent, ns=(before.st_atime_ns, before.st_mtime_ns))
    except OSError:
        pass  # not our folder: the index is built once more the next time


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
