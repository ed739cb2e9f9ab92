"""Logs of distributed training that speak of all processes."""

import torch
from mmengine.dist import all_reduce, broadcast_object_list, get_world_size
from mmengine.runner import LogProcessor as MMEngineLogProcessor

from ..registry import LOG_PROCESSORS

OWN = ('time', 'data_time', 'memory')  # what a process measures of itself


@LOG_PROCESSORS.register_module()
class LogProcessor(MMEngineLogProcessor):
    """mmengine's LogProcessor, with losses and accuracies of training averaged over the processes.

    mmengine logs those of the first process: of 64 images where 2048 are trained on. Averaged is what is logged, when it is logged, so the
    cost is two small collectives every `interval` iterations of the LoggerHook. Learning rates and times stay those of the first process.
    Takes the same arguments.
    """

    def _collect_scalars(self, custom_cfg, runner, mode, reserve_prefix=False):
        scalars = super()._collect_scalars(custom_cfg, runner, mode, reserve_prefix)
        return average(scalars) if mode == 'train' and get_world_size() > 1 else scalars


def average(scalars: dict[str, float]) -> dict[str, float]:
    """Means over all processes that have the value; every process must call it. The names are those of the first process."""
    names = [[name for name in scalars if not name.endswith('lr') and name.split('/')[-1] not in OWN]]
    broadcast_object_list(names)
    (names,) = names
    values = torch.tensor([float(scalars.get(name, torch.nan)) for name in names], dtype=torch.float64)
    # A loss that is not a number has to show, so what a process lacks is told apart by its name.
    present = torch.tensor([float(name in scalars) for name in names], dtype=torch.float64)
    sums = torch.stack([torch.where(present > 0, values, 0.0), present])
    all_reduce(sums)
    means = dict(zip(names, (sums[0] / sums[1]).tolist(), strict=True))
    return {name: means.get(name, value) for name, value in scalars.items()}
