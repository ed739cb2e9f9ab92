"""What stands between the encoder and the heads of other libraries."""

from .deconv_pyramid import DeconvPyramid

__all__ = ['DeconvPyramid']
