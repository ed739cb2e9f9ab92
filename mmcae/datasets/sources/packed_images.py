"""Unlabelled images out of packed shards: what `mmcae pack` makes of a folder."""

import numpy as np
from mmengine.dataset import BaseDataset

from ...registry import DATASETS
from ...utils.errors import ConfigError
from ...utils.remote import RemoteRoot
from .bad_files import ReplaceBadFiles
from .fingerprint import split
from .shards import ShardReader


class PackedFiles(RemoteRoot, BaseDataset):
    """Files of a packed folder in random access. See :class:`PackedImages`."""

    def __init__(self, data_root='', data_prefix='', ann_file='', **kwargs):
        if ann_file:
            raise ConfigError(f'ann_file={ann_file!r}: packed images have no list of files. Pack those alone: pack_images.py --list FILE')
        super().__init__(data_root=data_root, data_prefix=dict(img_path=data_prefix), serialize_data=False, **kwargs)

    def full_init(self):
        """Read the index; mmengine calls it."""
        if self._fully_initialized:
            return
        self.reader = ShardReader(self.data_prefix['img_path'] or '.')
        self.data_list = np.arange(len(self.reader))  # by which mmengine picks subsets
        self._fully_initialized = True
        if self._indices is not None:
            self.get_subset_(self._indices)

    def sample_names(self):
        """The paths that all samples had, list[bytes]."""
        names = split(self.reader.index.paths, self.reader.index.path_end)
        return [names[i] for i in self.data_list.tolist()]

    def get_data_info(self, idx):
        """Where a sample is.

        Args:
            idx (int): From 0 to the number of images; or from the end, if negative.

        Returns:
            dict: `img_path`, the shard's file and in it the path that the image had; `img_part`, see :meth:`.shards.ShardReader.part`; and
            `sample_idx`.
        """
        if not self._fully_initialized:
            self.full_init()
        number = int(self.data_list[idx])
        return dict(img_path=self.reader.place(number), img_part=self.reader.part(number), sample_idx=idx if idx >= 0 else len(self) + idx)

    def prepare_data(self, idx):
        return self.pipeline(dict(self.get_data_info(idx), img_bytes=self.reader.read(int(self.data_list[idx]))))


@DATASETS.register_module()
class PackedImages(ReplaceBadFiles, PackedFiles):
    """The images of a packed folder, in random access: samplers, shuffling and several processes work as with a folder of files.

    Takes the place of mmcae.ImageFolder in a pretraining config by its name and the folder's. The pipeline gets `img_bytes`, the bytes of
    the image's file, beside `img_path`; it has to begin with mmcae.LoadImage, which reads them. Files that cannot be
    read are replaced and reported, see :class:`.bad_files.ReplaceBadFiles`, and so are bytes that are not those that were
    packed. In memory are 28 bytes and the path of every image, which loader workers share.

    Args:
        data_root (str): The packed folder.
        data_prefix (str): A folder in it, such as 'train' of a packing that was split. Defaults to ''.
        ann_file (str): Only '': there are no lists of packed images.
        **kwargs: mmengine's BaseDataset: pipeline, indices, test_mode, metainfo, lazy_init.

    Raises:
        ConfigError: `ann_file` is set.
        DataError: The folder is not complete, or a shard is missing or has been cut.
    """
