"""Pictures: what a model reconstructs, where it looks, what it predicts, how it learned; and the page that shows them all."""

from .attention import attention_maps, attention_sheet
from .curves import plot_curves, read_scalars
from .reconstruction import reconstruction_sheet
from .sheet import picture_sheet, save_picture

__all__ = [
    'attention_maps',
    'attention_sheet',
    'picture_sheet',
    'plot_curves',
    'read_scalars',
    'reconstruction_sheet',
    'save_picture',
]
