"""Judging an encoder: the kNN probe, collapse metrics, probes on cached features."""

from ..registry import METRICS, register_lazily
from .collapse import effective_rank, feature_std
from .frozen_features import FrozenFeatureTrainLoop
from .knn import KNNLoop, knn_scores
from .segmentation_loop import SegmentationProbeLoop

register_lazily(METRICS, 'mmcae.evaluation.coco_metric', 'CocoMetric')

__all__ = ['FrozenFeatureTrainLoop', 'KNNLoop', 'SegmentationProbeLoop', 'effective_rank', 'feature_std', 'knn_scores']
