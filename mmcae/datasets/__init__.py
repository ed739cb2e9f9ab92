"""Data: the pretraining transforms, batches from several sources, few-label subsets, and the check that the data is there."""

from ..registry import DATASETS, register_lazily
from . import transforms
from .check_data import check_data
from .label_subset import label_subset
from .source_batch_sampler import SourceBatchSampler

register_lazily(DATASETS, 'mmcae.datasets.coco', 'CocoDataset')

__all__ = ['SourceBatchSampler', 'check_data', 'label_subset', 'transforms']
