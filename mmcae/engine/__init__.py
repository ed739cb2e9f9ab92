"""What training needs beyond mmengine: the paper's schedule, layer-wise learning rates, hooks."""

from .amp import AmpOptimWrapper
from .checks import Check, Checks
from .deepspeed_strategy import DeepSpeedStrategy
from .distributed import CPUDistributedDataParallel
from .fsdp2 import FSDP2Strategy
from .hooks import CheckpointHook, CompileParts, DrawReconstructions, OnlineProbe, ShowProgress, TrainingStatistics
from .log_processor import LogProcessor
from .loops import EpochBasedTrainLoop, IterBasedTrainLoop, TestLoop, ValLoop
from .optimizers import LayerDecayOptimWrapperConstructor
from .runner import Runner
from .schedulers import WarmupCosineLR
from .strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy

__all__ = [
    'AmpOptimWrapper',
    'CPUDistributedDataParallel',
    'Check',
    'CheckpointHook',
    'Checks',
    'CompileParts',
    'DDPStrategy',
    'DeepSpeedStrategy',
    'DrawReconstructions',
    'EpochBasedTrainLoop',
    'FSDP2Strategy',
    'FSDPStrategy',
    'IterBasedTrainLoop',
    'LayerDecayOptimWrapperConstructor',
    'LogProcessor',
    'OnlineProbe',
    'Runner',
    'ShowProgress',
    'SingleDeviceStrategy',
    'TestLoop',
    'TrainingStatistics',
    'ValLoop',
    'WarmupCosineLR',
]
