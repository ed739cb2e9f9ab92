"""Judging an encoder: the kNN probe, collapse metrics, probes on cached features."""

from ..registry import LOOPS, METRICS, register_lazily
from .collapse import effective_rank, feature_std
from .frozen_features import FrozenFeatureTrainLoop
from .knn import KNNLoop, knn_scores

register_lazily(METRICS, 'mmcae.evaluation.coco_metric', 'CocoMetric')
register_lazily(LOOPS, 'mmcae.evaluation.segmentation_loop', 'SegmentationProbeLoop')

__all__ = ['FrozenFeatureTrainLoop', 'KNNLoop', 'effective_rank', 'feature_std', 'knn_scores']
