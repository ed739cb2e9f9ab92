"""Data: the pretraining transforms, batches from several sources, few-label subsets, and the check that the data is there."""

from . import transforms
from .check_data import check_data
from .label_subset import label_subset
from .source_batch_sampler import SourceBatchSampler

__all__ = ['SourceBatchSampler', 'check_data', 'label_subset', 'transforms']
