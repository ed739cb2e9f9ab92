"""Tokenizers: what CAE predicts of the masked patches. One file for each kind of target."""

from .base import Tokenizer
from .codebook import PatchCodebook
from .dalle import DALLETokenizer
from .discrete_vae import DiscreteVAE
from .pixels import PixelTargets
from .stored import StoredTokens
from .teacher import FeatureTargets

__all__ = ['DALLETokenizer', 'DiscreteVAE', 'FeatureTargets', 'PatchCodebook', 'PixelTargets', 'StoredTokens', 'Tokenizer']
