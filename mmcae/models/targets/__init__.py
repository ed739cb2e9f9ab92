"""Targets: what is predicted of the patches. One file for each kind."""

from .base import Target, Tokenizer
from .codebook import PatchCodebook
from .dalle import DALLETokenizer
from .discrete_vae import DiscreteVAE
from .pixels import PixelTargets
from .stored import StoredTokens
from .teacher import Teacher

__all__ = ['DALLETokenizer', 'DiscreteVAE', 'PatchCodebook', 'PixelTargets', 'StoredTokens', 'Target', 'Teacher', 'Tokenizer']
