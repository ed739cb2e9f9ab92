"""Data: folders of unlabelled images, the pretraining transforms, batches from several sources, few-label subsets, the check of paths."""

from ..registry import DATASETS, register_lazily
from . import transforms
from .bad_files import ReplaceBadFiles
from .check_data import check_data
from .image_folder import ImageFolder
from .label_subset import label_subset
from .source_batch_sampler import SourceBatchSampler

register_lazily(DATASETS, 'mmcae.datasets.coco', 'CocoDataset')

__all__ = ['ImageFolder', 'ReplaceBadFiles', 'SourceBatchSampler', 'check_data', 'label_subset', 'transforms']
