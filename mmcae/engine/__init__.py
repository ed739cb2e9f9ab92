"""What training needs beyond mmengine: the paper's schedule, layer-wise learning rates, hooks."""

from .optimizers import LayerDecayOptimWrapperConstructor
from .schedulers import WarmupCosineLR

__all__ = ['LayerDecayOptimWrapperConstructor', 'WarmupCosineLR']
