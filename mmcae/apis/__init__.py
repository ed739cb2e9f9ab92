"""What a notebook or a script of one's own needs: models and features from checkpoints."""

from .load import load_cae, load_encoder

__all__ = ['load_cae', 'load_encoder']
