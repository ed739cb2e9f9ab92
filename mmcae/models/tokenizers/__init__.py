"""Tokenizers: what CAE predicts of the masked patches. One file for each kind of target."""

from .base import Tokenizer
from .dalle import DALLETokenizer
from .discrete_vae import DiscreteVAE
from .features import FeatureTargets
from .patch_codebook import PatchCodebook
from .pixels import PixelTargets
from .stored import StoredTokens

__all__ = ['DALLETokenizer', 'DiscreteVAE', 'FeatureTargets', 'PatchCodebook', 'PixelTargets', 'StoredTokens', 'Tokenizer']
