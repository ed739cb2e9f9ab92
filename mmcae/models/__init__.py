"""Models: the five boxes of CAE, and what carries its encoder into other tasks."""

from .cae import CAE
from .decoder import CAEDecoder
from .necks import DeconvPyramid
from .regressor import LatentContextualRegressor
from .vit import CAEViT

__all__ = ['CAE', 'CAEDecoder', 'CAEViT', 'DeconvPyramid', 'LatentContextualRegressor']
