"""Hooks of mmcae's own."""

from .bad_files import ReportBadFiles
from .check_sample import CheckSample
from .checkpoint import CheckpointHook
from .class_check import CheckClasses
from .compile import CompileParts
from .detector_check import CheckDetector
from .draw_reconstructions import DrawReconstructions
from .label_check import CheckLabels
from .loss_check import CheckLoss
from .online_probe import OnlineProbe

__all__ = [
    'CheckClasses',
    'CheckDetector',
    'CheckLabels',
    'CheckLoss',
    'CheckpointHook',
    'CheckSample',
    'CompileParts',
    'DrawReconstructions',
    'OnlineProbe',
    'ReportBadFiles',
]
