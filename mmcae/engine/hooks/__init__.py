"""Hooks of mmcae's own."""

from .check_sample import CheckSample
from .class_check import CheckClasses
from .detector_check import CheckDetector
from .draw_reconstructions import DrawReconstructions
from .label_check import CheckLabels
from .online_probe import OnlineProbe

__all__ = ['CheckClasses', 'CheckDetector', 'CheckLabels', 'CheckSample', 'DrawReconstructions', 'OnlineProbe']
