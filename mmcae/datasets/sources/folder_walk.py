"""Look through a folder and everything below it for images: which ones count, and in which order."""

import os
import time
from array import array
from collections import Counter

import numpy as np
from mmengine.logging import print_log

from ...utils.errors import DataError
from ...utils.files import patiently

# A folder that changed this shortly before it was read could change again without another time; it is not trusted the next time.
CLOCK_TICK = 2e9  # nanoseconds, the coarsest clock of a file system in use
PROGRESS = 5  # seconds between two lines about how far it is
FORMER = '.mmcae'  # the folder among the images in which earlier versions kept their indexes


class FolderWalk:
    """One pass over a folder: real folders depth first and sorted by name, then linked folders, then linked files.

    Names that begin with a dot are left out. Symbolic links are followed, but no folder is read twice and no image is taken twice: what
    lies in the folder itself comes first, links come after it.

    Args:
        root (str): The folder, absolute.
        extensions (tuple[str]): What the names of images end in, lower case.
    """

    def __init__(self, root, extensions):
        self.root, self.extensions = root, extensions
        self.names, self.ends = bytearray(), array('q')
        self.folders, self.folder_ends, self.times = bytearray(), array('q'), array('q')
        self.read = set()  # (device, inode) of the folders
        self.linked_folders, self.linked_files = [], []
        self.other, self.hidden, self.repeated, self.former = Counter(), 0, 0, []

    def run(self):
        """Do it.

        Returns:
            tuple[dict[str, np.ndarray], dict]: The arrays and the facts of a :class:`~mmcae.datasets.sources.folder_index.FolderIndex`.

        Raises:
            DataError: A folder cannot be listed.
            StorageError: The storage fails.
        """
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
            former=self.former,
        )
        return arrays, facts

    def descend(self, top):
        stack = [top]
        while stack:
            folder = stack.pop()
            stack += [os.path.join(folder, name) for name in reversed(self.read_folder(folder))]

    def read_folder(self, folder):
        """Note the images of one folder; returns the names of the folders in it."""
        path = os.path.join(self.root, folder) if folder else self.root

        def read():
            status, now = os.stat(path), time.time_ns()
            if (status.st_dev, status.st_ino) in self.read:
                return status, now, None
            with os.scandir(path) as entries:
                return status, now, sorted((entry.name, kind_of(entry)) for entry in entries)

        try:
            status, now, entries = patiently(read, path)
        except OSError as error:
            raise DataError(f'{path} cannot be listed ({error.strerror}): change its permissions, or move it elsewhere') from error
        if entries is None:
            self.repeated += 1
            return []
        self.read.add((status.st_dev, status.st_ino))
        changed = time_of_change(status)
        self.folders += os.fsencode(folder)
        self.folder_ends.append(len(self.folders))
        self.times.append(changed if now - changed > CLOCK_TICK else -1)
        folders = self.sort_entries(folder, entries)
        if time.perf_counter() - self.told > PROGRESS:
            self.told = time.perf_counter()
            print_log(f'Looking for images: {len(self.ends):,} so far, in {len(self.folder_ends):,} folders; now in {path}', 'current')
        return folders

    def sort_entries(self, folder, entries):
        folders = []
        for name, kind in entries:
            path = os.path.join(folder, name)
            if kind == 'hidden':
                self.hidden += 1
                if name == FORMER:
                    self.former.append(os.path.join(self.root, path))
            elif kind == 'linked folder':
                self.linked_folders.append(path)
            elif kind == 'folder':
                folders.append(name)
            elif kind == 'other':
                self.other['no regular file'] += 1
            elif self.is_image(name):
                self.linked_files.append(path) if kind == 'link' else self.add(path)
        return folders

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


def kind_of(entry):
    """What a name in a folder is: 'hidden', 'linked folder', 'link', 'folder', 'file', or 'other' such as a pipe or a device."""
    if entry.name.startswith('.'):
        return 'hidden'
    if entry.is_symlink():
        return 'linked folder' if entry.is_dir() else 'link'
    if entry.is_dir():
        return 'folder'
    return 'file' if entry.is_file() else 'other'


def time_of_change(status):
    """When the names in a folder changed last, in nanoseconds. Copies and archives set the first of the two back, never the second."""
    return max(status.st_mtime_ns, status.st_ctime_ns)
