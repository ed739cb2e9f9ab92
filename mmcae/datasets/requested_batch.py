"""The files of a batch that lie in a store, requested all at once: a loader worker waits for the store once, not once for each image."""

from collections.abc import Sequence
from contextlib import AbstractContextManager

from torch.utils.data import Dataset

from ..utils import remote
from .wrappers import innermost


def requested_batch(dataset: Dataset, indices: Sequence[int]) -> AbstractContextManager:
    """Request what these samples of a data set read of a store; within the block the samples are loaded as usual, and find it under way.

    Goes into `__getitems__`, to which torch's DataLoader gives the indices of a batch. Files that are not in a store are left alone, and so
    are data sets of other libraries.

    Args:
        dataset: mmcae.ImageFolder, mmcae.PackedImages, or a wrapper of mmengine's around some.
        indices: Of the batch.
    """
    if not hasattr(dataset, 'get_data_info') or not any(isinstance(part, remote.RemoteRoot) for part in innermost(dataset)):
        return remote.requested([])
    parts = (info.get('img_part', (info['img_path'], None, None)) for info in map(dataset.get_data_info, indices))
    return remote.requested([part for part in parts if remote.is_remote(part[0])])
