"""Classification heads that mmpretrain does not have."""

from .attentive import AttentiveClsHead

__all__ = ['AttentiveClsHead']
