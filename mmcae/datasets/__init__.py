"""Data: folders and packed shards of images, the pretraining transforms, few-label subsets, a check of paths."""

from ..registry import DATASETS, register_lazily
from . import transforms
from .bad_files import ReplaceBadFiles
from .check_data import check_data
from .image_backend import read_images_alike
from .image_folder import ImageFolder
from .label_subset import label_subset
from .packed_images import PackedImages
from .source_batch_sampler import SourceBatchSampler

register_lazily(DATASETS, 'mmcae.datasets.coco', 'CocoDataset')

__all__ = [
    'ImageFolder',
    'PackedImages',
    'ReplaceBadFiles',
    'SourceBatchSampler',
    'check_data',
    'label_subset',
    'read_images_alike',
    'transforms',
]
