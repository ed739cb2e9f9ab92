"""Models: the five boxes of CAE, and what carries its encoder into other tasks."""

from ..registry import MODELS, register_lazily
from .dense import DeconvPyramid, SimpleFeaturePyramid
from .encoders.vit import CAEViT
from .heads import AttentiveClsHead
from .methods.cae import CAE
from .methods.decoder import CAEDecoder
from .methods.regressor import LatentContextualRegressor
from .preprocessor import TwoViewPreprocessor
from .targets import DALLETokenizer, DiscreteVAE, FeatureTargets, PatchCodebook, PixelTargets, StoredTokens

register_lazily(MODELS, 'mmcae.models.dense.detection', 'MaskTTAModel', 'RPNHead', 'SingleRoIExtractor')

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
