"""Data: folders and packed shards of images, the pretraining transforms, few-label subsets, a check of paths."""

from ..registry import DATASETS, register_lazily
from . import transforms
from .check_data import check_data
from .crops import collate_views
from .source_batch_sampler import SourceBatchSampler
from .sources.bad_files import ReplaceBadFiles
from .sources.image_backend import read_images_alike
from .sources.image_folder import ImageFolder
from .sources.label_subset import label_subset
from .sources.packed_images import PackedImages

register_lazily(DATASETS, 'mmcae.datasets.sources.coco.dataset', 'CocoDataset')

__all__ = [
    'ImageFolder',
    'PackedImages',
    'ReplaceBadFiles',
    'SourceBatchSampler',
    'check_data',
    'collate_views',
    'label_subset',
    'read_images_alike',
    'transforms',
]
