"""What a notebook or a script of one's own needs: models, features and reconstructions from checkpoints."""

from .embedding import embed
from .feature_files import describe_features, read_features
from .features import extract_features, load_encoder_and_view
from .load import load_cae, load_encoder
from .reconstruct import Reconstruction, load_pretrained, reconstruct
from .view import View

__all__ = [
    'Reconstruction',
    'View',
    'describe_features',
    'embed',
    'extract_features',
    'load_cae',
    'load_encoder',
    'load_encoder_and_view',
    'load_pretrained',
    'read_features',
    'reconstruct',
]
