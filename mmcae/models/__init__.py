"""Models: the five boxes of CAE, and what carries its encoder into other tasks."""

from ..registry import MODELS, register_lazily
from .cae import CAE
from .decoder import CAEDecoder
from .heads import AttentiveClsHead
from .necks import DeconvPyramid, SimpleFeaturePyramid
from .preprocessor import TwoViewPreprocessor
from .regressor import LatentContextualRegressor
from .tokenizers import DALLETokenizer, DiscreteVAE, FeatureTargets, PatchCodebook, PixelTargets, StoredTokens
from .vit import CAEViT

register_lazily(MODELS, 'mmcae.models.detection', 'MaskTTAModel', 'RPNHead', 'SingleRoIExtractor')

__all__ = [
    'AttentiveClsHead',
    'CAE',
    'CAEDecoder',
    'CAEViT',
    'DALLETokenizer',
    'DeconvPyramid',
    'DiscreteVAE',
    'FeatureTargets',
    'LatentContextualRegressor',
    'PatchCodebook',
    'PixelTargets',
    'SimpleFeaturePyramid',
    'StoredTokens',
    'TwoViewPreprocessor',
]
