"""What stands between the encoder and the heads of other libraries."""

from .deconv_pyramid import DeconvPyramid
from .simple_feature_pyramid import SimpleFeaturePyramid

__all__ = ['DeconvPyramid', 'SimpleFeaturePyramid']
