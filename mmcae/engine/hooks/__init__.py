"""Hooks of mmcae's own."""

from .checkpoint import CheckpointHook
from .compile import CompileParts
from .draw_reconstructions import DrawReconstructions
from .online_probe import OnlineProbe
from .progress import ShowProgress
from .training_statistics import TrainingStatistics

__all__ = [
    'CheckpointHook',
    'CompileParts',
    'DrawReconstructions',
    'OnlineProbe',
    'ShowProgress',
    'TrainingStatistics',
]
