"""The learning rate schedule of the paper's recipes."""

import math

from mmengine.optim.scheduler.lr_scheduler import LRSchedulerMixin
from mmengine.optim.scheduler.param_scheduler import INF, _ParamScheduler

from ..registry import PARAM_SCHEDULERS
from ..utils.errors import ConfigError


@PARAM_SCHEDULERS.register_module()
class WarmupCosineLR(LRSchedulerMixin, _ParamScheduler):
    """Linear warm-up from exactly 0, then half a cosine down to a floor (the authors' schedule).

    With W warm-up steps the factor is `i / (W - 1)` for i < W, so the first step has learning rate 0 and the last one of the
    warm-up the full one. The cosine starts anew at the full rate and ends one step short of the floor.
    mmengine's LinearLR is recursive and cannot start from 0.

    Args:
        optimizer: Wrapped optimizer.
        warmup: Length of the warm-up, in epochs where `by_epoch`, else in iterations.
        eta_min: Floor of the base learning rate; groups with a share of it keep their share of the floor.
        begin, end: The span of the schedule, warm-up included, in epochs or iterations like `warmup`.
        by_epoch: The unit. The rate changes every iteration in any case: set `convert_to_iter_based=True`.
    """

    def __init__(
        self,
        optimizer,
        warmup: float,
        eta_min: float = 0.0,
        begin: int = 0,
        end: int = INF,
        last_step: int = -1,
        by_epoch: bool = True,
        verbose: bool = False,
    ):
        if not 0 <= warmup < end - begin or end >= INF:
            raise ConfigError(
                f'WarmupCosineLR: the warm-up ({warmup}) must be shorter than the schedule (from {begin} to {end}): train longer, or set '
                'warmup lower in param_scheduler'
            )
        self.warmup, self.eta_min = int(warmup), eta_min
        super().__init__(optimizer, begin, end, last_step, by_epoch, verbose)

    @classmethod
    def build_iter_from_epoch(cls, *args, warmup, begin=0, end=INF, by_epoch=True, epoch_length=None, **kwargs):
        """The same schedule counted in iterations, for `convert_to_iter_based=True`."""
        if not by_epoch:
            raise ConfigError('convert_to_iter_based=True belongs to a schedule with by_epoch=True')
        warmup, begin, end = (int(round(x * epoch_length)) for x in (warmup, begin, end))
        return cls(*args, warmup=warmup, begin=begin, end=end, by_epoch=False, **kwargs)

    def _get_value(self) -> list[float]:
        step = min(self.last_step, self.end - self.begin - 1)
        if step < self.warmup:
            factor = step / max(self.warmup - 1, 1)
            return [base * factor for base in self.base_values]
        progress = (step - self.warmup) / (self.end - self.begin - self.warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        # The floor belongs to the largest rate; layer-wise smaller ones go down to their own share of it.
        floor = self.eta_min / max(self.base_values)
        return [base * (floor + (1 - floor) * cosine) for base in self.base_values]
