"""Transforms of the pretraining pipeline: read an image, cut two views from one box, draw a mask."""

from ...registry import TRANSFORMS, register_lazily
from .color_jitter import ColorJitter
from .evaluation_view import EvaluationView
from .loading import LoadImage
from .masks import BlockMaskGenerator, MultiBlockMaskGenerator, RandomMaskGenerator
from .micron_scale import MicronScale
from .stored_views import StoredViews
from .tissue import HEDJitter, RandomRotate90
from .two_view_crop import OneViewCrop, TwoViewCrop

register_lazily(TRANSFORMS, 'mmcae.datasets.transforms.load_label_map', 'LoadLabelMap')

__all__ = [
    'BlockMaskGenerator',
    'ColorJitter',
    'EvaluationView',
    'HEDJitter',
    'LoadImage',
    'MicronScale',
    'MultiBlockMaskGenerator',
    'OneViewCrop',
    'RandomMaskGenerator',
    'RandomRotate90',
    'StoredViews',
    'TwoViewCrop',
]
