"""Models: methods, encoders, targets, and what carries an encoder into other tasks."""

from .. import compat
from ..registry import MODELS, register_lazily

compat.import_mmpretrain()  # in its own way, before anything here does

from .dense import DeconvPyramid, SimpleFeaturePyramid
from .encoders.base import Encoder
from .encoders.timm_encoder import TimmEncoder
from .encoders.vit import CAEViT
from .heads import AttentiveClsHead
from .methods.beit import BEiT
from .methods.cae import CAE
from .methods.cae_v2 import CAEv2
from .methods.data2vec import Data2Vec
from .methods.decoder import CAEDecoder
from .methods.ijepa import IJEPA, JEPAPredictor
from .methods.mae import MAE, MAEDecoder
from .methods.regressor import LatentContextualRegressor
from .methods.simmim import SimMIM
from .preprocessor import ViewPreprocessor
from .targets import DALLETokenizer, DiscreteVAE, PatchCodebook, PixelTargets, StoredTokens, Teacher

register_lazily(MODELS, 'mmcae.models.dense.detection', 'MaskTTAModel', 'RPNHead', 'SingleRoIExtractor')

__all__ = [
    'AttentiveClsHead',
    'BEiT',
    'CAE',
    'CAEDecoder',
    'CAEViT',
    'CAEv2',
    'DALLETokenizer',
    'Data2Vec',
    'DeconvPyramid',
    'DiscreteVAE',
    'Encoder',
    'IJEPA',
    'JEPAPredictor',
    'LatentContextualRegressor',
    'MAE',
    'MAEDecoder',
    'PatchCodebook',
    'PixelTargets',
    'SimMIM',
    'SimpleFeaturePyramid',
    'StoredTokens',
    'Teacher',
    'TimmEncoder',
    'ViewPreprocessor',
]
