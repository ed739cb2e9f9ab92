"""Unlabelled images: a folder with everything below it, or a list of files."""

import os

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

from ...registry import DATASETS
from ...utils import remote
from ...utils.errors import DataError, StorageError
from ...utils.files import patiently
from ...utils.text_files import read_bytes
from .bad_files import ReplaceBadFiles
from .fingerprint import split
from .folder_index import folder_index, left_out

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.webp', '.tif', '.tiff', '.bmp', '.ppm', '.pgm')


@DATASETS.register_module()
class ImageFolder(ReplaceBadFiles, remote.RemoteRoot, BaseDataset):
    """All images below a folder, whatever their folders are called, or those of a list: `dict(img_path=...)` for the pipeline.

    Folders of millions of files are looked through once; an index remembers them and notices changes, see
    :mod:`.folder_index`. Names that begin with a dot are left out, symbolic links are followed once, the order depends on
    the names alone. Files that cannot be read are replaced and reported, see :class:`.bad_files.ReplaceBadFiles`.

    The paths are kept as one buffer of bytes (mmengine's `data_bytes`, with `data_address`), so that loader workers share them.

    A folder may also be an address, such as s3://bucket/folder, see :mod:`mmcae.utils.remote`: it is listed at every start.

    Args:
        data_root (str): The folder.
        data_prefix (str): Another folder in it, to take only what is below that. Defaults to ''.
        ann_file (str): A text file with one path per line instead, relative to the folder or absolute; relative itself to `data_root`.
            Nothing is looked for then: every line counts, and what is not there shows as a file that cannot be read. Defaults to ''.
        extensions (Sequence[str]): What the names of images end in, in any case. Has no meaning with `ann_file`.
        **kwargs: mmengine's BaseDataset: pipeline, indices, test_mode, metainfo, lazy_init.

    Raises:
        DataError: The folder or list does not exist, or there is no image in it.
    """

    def __init__(self, data_root='', data_prefix='', ann_file='', extensions=EXTENSIONS, **kwargs):
        self.extensions = tuple(extensions)
        super().__init__(ann_file=ann_file, data_root=data_root, data_prefix=dict(img_path=data_prefix), serialize_data=True, **kwargs)

    @property
    def folder(self):
        """What the paths are relative to."""
        path = self.data_prefix['img_path']
        return path.rstrip('/') or path or '.'

    def full_init(self):
        """Find the images; mmengine calls it."""
        if self._fully_initialized:
            return
        self.data_bytes, self.data_address = self.listed() if self.ann_file else self.indexed()
        self._fully_initialized = True
        if self._indices is not None:
            self.get_subset_(self._indices)

    def indexed(self):
        """Paths relative to the folder, from its index: all of them as bytes, and where each one ends."""
        if remote.is_remote(self.folder):
            return self.listed_remotely()
        index = folder_index(self.folder, self.extensions)
        if not len(index):
            raise DataError(
                f'There is no image in {self.folder}{left_out(index.facts)}. Images are files whose names end in '
                f'{", ".join(self.extensions)}: name their folder (data_root in a config), or other endings (extensions)'
            )
        return index.arrays['names'], index.arrays['ends']

    def listed_remotely(self):
        """The same of a folder in a store, hidden names left out."""
        try:
            names = patiently(lambda: remote.find(self.folder), self.folder)
        except FileNotFoundError as error:
            raise DataError(f'{self.folder} does not exist: set data_root to the folder of your images') from error
        images = [name for name in names if name.lower().endswith(self.extensions) and not f'/{name}'.count('/.')]
        if not images:
            raise DataError(
                f'There is no image in {self.folder}, among {len(names):,} files: name the folder of your images (data_root in a config)'
            )
        print_log(f'{len(images):,} images in {self.folder}, of {len(names):,} files', 'current')
        return packed([os.fsencode(name) for name in images])

    def listed(self):
        """The same from the list."""
        try:
            paths = [line for line in read_bytes(self.ann_file).splitlines() if line.strip()]
        except StorageError:
            raise
        except DataError as error:
            raise DataError(f'The list {error}. Set ann_file to a text file of paths') from error
        if not paths:
            raise DataError(f'The list {self.ann_file} is empty: write one path per line, relative to {self.folder} or absolute')
        first = self.path_of(os.fsdecode(paths[0]))
        if not (patiently(lambda: remote.exists(first), first) if remote.is_remote(first) else os.path.exists(first)):
            raise DataError(
                f'{first}, the first of the list {self.ann_file}, does not exist: its lines must be absolute, or relative to {self.folder} '
                '(data_root and data_prefix)'
            )
        print_log(f'{len(paths):,} images from the list {self.ann_file}', 'current')
        return packed(paths)

    def sample_names(self):
        """The paths of all samples as they are kept, list[bytes]."""
        return split(self.data_bytes, self.data_address)

    def get_data_info(self, idx):
        """Path of a sample.

        Args:
            idx (int): From 0 to the number of images; or from the end, if negative.

        Returns:
            dict: `img_path` and `sample_idx`.
        """
        if not self._fully_initialized:
            self.full_init()
        idx = idx + len(self) if idx < 0 else idx
        start = int(self.data_address[idx - 1]) if idx else 0
        name = os.fsdecode(self.data_bytes[start : int(self.data_address[idx])].tobytes())
        return dict(img_path=self.path_of(name), sample_idx=idx)

    def path_of(self, name):
        """A name below the folder, or one that is complete by itself."""
        if remote.is_remote(name):
            return name
        return str(remote.join(self.folder, name)) if remote.is_remote(self.folder) and name[:1] != '/' else os.path.join(self.folder, name)


def packed(paths):
    """Paths as bytes one after another, and where each one ends."""
    return np.frombuffer(b''.join(paths), np.uint8), np.cumsum([len(path) for path in paths])
