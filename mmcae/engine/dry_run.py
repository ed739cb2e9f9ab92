"""A training that is built as a whole and sees one batch: what it would do, how long it would take, and what it needs."""

import math
import resource
import sys
import time
from functools import partial

import torch
from mmengine.dist import get_world_size
from mmengine.optim import OptimWrapperDict

from ..utils.errors import ConfigError
from ..utils.progress import duration
from ..utils.wrappers import unwrapped

GIB = 2**30


def dry_run(runner) -> str:
    """Build everything that a training needs, take two steps on one batch, and describe the plan.

    Loops, optimizer, schedules and validation are built, and weights are initialised or loaded, as the training itself would do it. The
    second step is the one that is timed: the first one pays for what is prepared once.

    Args:
        runner (Runner): As :func:`mmcae.engine.launch.build_runner` returns it. Its model is trained by two steps.

    Returns:
        str: Several lines.

    Raises:
        ConfigError: The optimizer is several, or the loss is not finite.
    """
    loop, lines = runner.train_loop, []
    loop.run = partial(lines_of_one_batch, runner, loop, lines)
    runner.train()
    return '\n'.join(lines)


def lines_of_one_batch(runner, loop, lines: list[str]):
    """Takes the place of the training loop's `run`."""
    if isinstance(runner.optim_wrapper, OptimWrapperDict):
        raise ConfigError('--dry-run knows one optimizer, and this config has several')
    began = time.perf_counter()
    batch = next(iter(loop.dataloader))
    loading = time.perf_counter() - began
    runner.model.train()
    for _ in range(2):
        synchronize()
        began = time.perf_counter()
        losses = runner.model.train_step(batch, optim_wrapper=runner.optim_wrapper)
        synchronize()
        seconds = time.perf_counter() - began
    losses = {name: float(value.detach()) for name, value in losses.items() if value.numel() == 1}
    if not math.isfinite(losses.get('loss', 0.0)):
        raise ConfigError(f'The loss of the first batch is {losses["loss"]}: look at the learning rate, the precision and the images')
    lines += describe(runner, loop, loading, seconds, losses)


def describe(runner, loop, loading: float, seconds: float, losses: dict[str, float]) -> list[str]:
    """The plan, from what was built and measured."""
    images, epoch, total = sizes(runner, loop)
    batch = runner.cfg.train_dataloader.get('batch_size') or 1
    workers = runner.cfg.train_dataloader.get('num_workers', 0)
    parameters = list(runner.model.parameters())
    count, trained = (sum(one.numel() for one in parameters if one.requires_grad or everything) for everything in (True, False))
    groups = runner.optim_wrapper.optimizer.param_groups
    peak = max(group.get('initial_lr', group['lr']) for group in groups)
    schedules = runner.param_schedulers or []
    schedules = schedules if isinstance(schedules, list) else [one for some in schedules.values() for one in some]
    parts = [f'{type(one).__name__} on {one.param_name} from step {one.begin:,} to {min(one.end, total):,}' for one in schedules]
    of_all = f'loss {losses["loss"]:.4g} ' if 'loss' in losses else ''
    named = ', '.join(f'{name} {value:.4g}' for name, value in losses.items() if name != 'loss')
    epochs = f'{total / epoch:g} epochs of {epoch:,} steps, ' if epoch else ''
    per_epoch = f'{duration(seconds * epoch)} per epoch, ' if epoch else ''
    return [
        f'data        {images:,} images; the first batch took {loading:.1f} s to load by {workers} workers',
        f'model       {type(unwrapped(runner.model)).__name__}, {count / 1e6:.1f} million parameters, {trained / 1e6:.1f} million trained',
        f'optimizer   {type(runner.optim_wrapper.optimizer).__name__} by {type(runner.optim_wrapper).__name__}, lr {peak:.4g}, '
        f'{max(group["lr"] for group in groups):.4g} in the first step',
        f'schedule    {epochs}{total:,} steps' + ''.join(f'; {part}' for part in parts),
        f'one batch   {of_all}({named}); {seconds:.3g} s, {batch / seconds:,.1f} images/s in each process',
        f'time        {per_epoch}{duration(seconds * total)} for all steps, without loading that takes longer and without validation',
        f'memory      {memory()}',
    ]


def sizes(runner, loop) -> tuple[int, int, int]:
    """Images, steps in an epoch, and steps in all."""
    images = len(loop.dataloader.dataset)
    try:
        steps = len(loop.dataloader)
    except TypeError:  # batches without end
        steps = 0
    if type(getattr(loop.dataloader, 'sampler', None)).__name__ == 'InfiniteSampler':
        steps = math.ceil(images / get_world_size() / (runner.cfg.train_dataloader.get('batch_size') or 1))
    return images, steps, loop.max_iters


def synchronize():
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def memory() -> str:
    """The most that this process has held so far."""
    if torch.cuda.is_available():
        return f'{torch.cuda.max_memory_allocated() / GIB:.2f} GiB of the GPU at most'
    unit = 1 if sys.platform == 'darwin' else 1024
    return f'{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB:.2f} GiB in this process at most, without the workers'
