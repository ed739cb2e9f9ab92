"""What training needs beyond mmengine: the paper's schedule, layer-wise learning rates, hooks."""

from .amp import AmpOptimWrapper
from .distributed import CPUDistributedDataParallel
from .hooks import CheckClasses, CheckDetector, CheckLabels, CheckLoss, CheckpointHook, CheckSample, DrawReconstructions, OnlineProbe
from .loops import EpochBasedTrainLoop, IterBasedTrainLoop
from .optimizers import LayerDecayOptimWrapperConstructor
from .schedulers import WarmupCosineLR

__all__ = [
    'AmpOptimWrapper',
    'CPUDistributedDataParallel',
    'CheckClasses',
    'CheckDetector',
    'CheckLabels',
    'CheckLoss',
    'CheckpointHook',
    'CheckSample',
    'DrawReconstructions',
    'EpochBasedTrainLoop',
    'IterBasedTrainLoop',
    'LayerDecayOptimWrapperConstructor',
    'OnlineProbe',
    'WarmupCosineLR',
]
