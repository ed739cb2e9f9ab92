"""Models: methods, encoders, targets, and what carries an encoder into other tasks."""

from .. import compat
from ..registry import MODELS, register_lazily

compat.spare_multimodal()  # before anything here imports mmpretrain's models

from .dense import DeconvPyramid, SimpleFeaturePyramid
from .encoders.base import Encoder
from .encoders.timm_encoder import TimmEncoder
from .encoders.vit import CAEViT
from .heads import AttentiveClsHead
from .methods.cae import CAE
from .methods.cae_v2 import CAEv2
from .methods.decoder import CAEDecoder
from .methods.regressor import LatentContextualRegressor
from .preprocessor import ViewPreprocessor
from .targets import DALLETokenizer, DiscreteVAE, PatchCodebook, PixelTargets, StoredTokens, Teacher

register_lazily(MODELS, 'mmcae.models.dense.detection', 'MaskTTAModel', 'RPNHead', 'SingleRoIExtractor')

__all__ = [
    'AttentiveClsHead',
    'CAE',
    'CAEDecoder',
    'CAEv2',
    'CAEViT',
    'DALLETokenizer',
    'DeconvPyramid',
    'DiscreteVAE',
    'Encoder',
    'LatentContextualRegressor',
    'PatchCodebook',
    'PixelTargets',
    'SimpleFeaturePyramid',
    'StoredTokens',
    'Teacher',
    'TimmEncoder',
    'ViewPreprocessor',
]
