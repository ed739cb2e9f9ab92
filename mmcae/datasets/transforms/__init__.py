"""Transforms of the pretraining pipeline: read an image, cut two views from one box, draw a mask."""

from .loading import LoadImage
from .masks import BlockMaskGenerator, RandomMaskGenerator
from .two_view_crop import OneViewCrop, TwoViewCrop

__all__ = ['BlockMaskGenerator', 'LoadImage', 'OneViewCrop', 'RandomMaskGenerator', 'TwoViewCrop']
