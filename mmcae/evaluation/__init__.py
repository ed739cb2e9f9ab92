"""Judging an encoder: the kNN probe, collapse metrics, probes on cached features."""

from .collapse import effective_rank, feature_std
from .frozen_features import FrozenFeatureTrainLoop
from .knn import KNNLoop, knn_scores

__all__ = ['FrozenFeatureTrainLoop', 'KNNLoop', 'effective_rank', 'feature_std', 'knn_scores']
