"""Checks of data, model and training, run by the hook `mmcae.Checks`. Each file here is one check."""

from . import bad_files, classes, label_maps, loss, objects, sample
from .base import Check, Checks

__all__ = ['Check', 'Checks', 'bad_files', 'classes', 'label_maps', 'loss', 'objects', 'sample']
