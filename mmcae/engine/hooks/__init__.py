"""Hooks of mmcae's own."""

from .class_check import CheckClasses
from .detector_check import CheckDetector
from .label_check import CheckLabels
from .online_probe import OnlineProbe

__all__ = ['CheckClasses', 'CheckDetector', 'CheckLabels', 'OnlineProbe']
