"""What the tools in tools/benchmarks/ share: contenders that take turns, ratios with their spread, peak memory, one table, json.

A machine that others use too, or whose clock changes, is slow at times: a time measured there means little. So contenders take turns within
one run, each ratio is of two times of the same round, and what is reported is the median of these ratios and how far they spread.
"""

import json
import multiprocessing
import os
import platform
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmcae.commands.arguments import device_of  # noqa: F401  (all benchmarks have --device)
from mmcae.utils.errors import ConfigError
from mmcae.utils.files import write_file

MIB = 2**20


def synchronize(device: torch.device):
    """Wait until the device has done what it was told to do; a CPU always has."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


CLOCKS = dict(wall=time.perf_counter, cpu=time.process_time)


def take_turns(
    contenders: Mapping[str, Callable], rounds: int, device: torch.device, warmup: int = 1, clock: str = 'wall'
) -> dict[str, list[float]]:
    """Time contenders in turns, every other round in reverse order.

    Args:
        contenders: Name -> what to time, called without arguments.
        rounds: How often each is timed.
        device: Where they compute.
        warmup: How often each is called before that.
        clock: 'wall' for seconds that pass; 'cpu' for those that the process computes, on all its cores: with OMP_NUM_THREADS=1 they tell
            contenders apart even while others use the CPU.

    Returns:
        Name -> `rounds` times in seconds, in the order of the rounds.
    """
    for _ in range(warmup):
        for run in contenders.values():
            run()
    times = {name: [] for name in contenders}
    for number in range(rounds):
        order = list(contenders.items())
        for name, run in order if number % 2 == 0 else reversed(order):
            synchronize(device)
            start = CLOCKS[clock]()
            run()
            synchronize(device)
            times[name].append(CLOCKS[clock]() - start)
        if sys.stderr.isatty():
            print(f'\rround {number + 1} of {rounds}', end='' if number + 1 < rounds else '\r\033[K', file=sys.stderr, flush=True)
    return times


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float]:
    """Ratios of two contenders' times, round by round: their `median`, and the `low` and `high` end of the middle half of them."""
    ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
    if len(ratios) == 1:
        return dict(median=ratios[0], low=ratios[0], high=ratios[0])
    low, median, high = statistics.quantiles(ratios, n=4, method='inclusive')
    return dict(median=median, low=low, high=high)


def show(value: Mapping[str, float]) -> str:
    """What :func:`ratio` gave, as text: `1.52 (1.48 to 1.60)`."""
    return f'{value["median"]:.2f} ({value["low"]:.2f} to {value["high"]:.2f})'


# ---------------------------------------------------------------- arithmetic


@contextmanager
def flop_counter():
    """Torch's counter of operations in matrix products and convolutions, those of attention as `aten.bmm`; an addition counts as one."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # which does not know all fused kernels of attention
        yield counter


def count_flops(run: Callable) -> int:
    """Operations of the matrix products and convolutions in a call, backward passes included."""
    with flop_counter() as counter:
        run()
    return counter.get_total_flops()


def matrix_rate(device: torch.device, dtype: str, size: int = 4096, runs: int = 5, clock: str = 'wall') -> float:
    """Operations per second in the product of two square matrices: what the device can do at best in float32, bfloat16 or float16."""
    a, b = (torch.rand(size, size, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    return 2 * size**3 / min(take_turns(dict(product=lambda: a @ b), runs, device, clock=clock)['product'])


# ---------------------------------------------------------------- memory


def peak_memory(build: Callable, *arguments, device: torch.device, runs: int = 2) -> float:
    """Peak memory of a contender in MiB, in a process of its own, from the moment it is built: weights, gradients, optimizer, activations.

    On a GPU it is what torch's allocator gave out at most. On a CPU it is the highest resident set of the process while `build`'s result
    runs (VmHWM of Linux, set back after building), less the resident set before building, when all libraries were loaded and warm. Memory
    that the C library keeps for later use counts, as it does for whoever shares the machine.

    Args:
        build: A function at the top of a module or script; its result is called without arguments, `runs` times.
        *arguments: Of `build`; they travel to the other process.
        device: Where it computes.
        runs: Training needs two: the optimizer's state is there from the second step on.

    Raises:
        ConfigError: The memory of a CPU was asked for on a system without /proc.
    """
    if device.type == 'cpu' and not Path('/proc/self/clear_refs').exists():
        raise ConfigError('Peak memory on a CPU is read from /proc, which only Linux has')
    # A fresh process: a forked one can inherit locks that nobody holds any more. And an executor, since a pool waits for ever for a process
    # that died.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')) as executor:
        return executor.submit(_peak_memory, build, arguments, device, runs).result()


def _peak_memory(build, arguments, device, runs):
    """The part of :func:`peak_memory` that runs in the other process."""
    _warm_up(device)
    before = _resident('VmRSS')
    run = build(*arguments)
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats()
    else:
        Path('/proc/self/clear_refs').write_text('5')  # sets VmHWM back to the present
    for _ in range(runs):
        run()
    return torch.cuda.max_memory_allocated() / MIB if device.type == 'cuda' else _resident('VmHWM') - before


def _warm_up(device):
    """Have libraries loaded, and threads and kernels made, which belong to no contender."""
    import timm  # noqa: F401

    import mmcae.models  # noqa: F401

    images, weight = torch.rand(2, 8, 32, 32, device=device), torch.rand(8, 8, 3, 3, device=device, requires_grad=True)
    torch.nn.functional.conv2d(images, weight).flatten(2).matmul(torch.rand(900, 64, device=device)).sum().backward()


def _resident(field):
    """A field of /proc/self/status in MiB."""
    text = Path('/proc/self/status').read_text()
    return int(re.search(rf'{field}:\s+(\d+) kB', text)[1]) / 1024


# ---------------------------------------------------------------- reports


def machine(device: torch.device) -> dict[str, str]:
    """What the figures were measured on: device, cores, threads, and the versions of all libraries."""
    import timm
    from mmpretrain import __version__ as mmpretrain

    cpu = platform.processor() or platform.machine()
    if Path('/proc/cpuinfo').exists():
        cpu = re.search(r'model name\s*:\s*(.+)|$', Path('/proc/cpuinfo').read_text())[1] or cpu
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else cpu
    cores = f'{len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()} cores'
    versions = f'torch {torch.__version__}, mmpretrain {mmpretrain}, timm {timm.__version__}, Python {platform.python_version()}'
    return dict(device=name, cpu=f'{cpu}, {cores}, {torch.get_num_threads()} threads', versions=versions)


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows with the same keys as a Markdown table, columns aligned; numbers are rounded to three significant digits."""
    lines = [list(rows[0]), *([_text(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, ['-' * width for width in widths])
    return '\n'.join('| ' + ' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + ' |' for line in lines)


def _text(value):
    if not isinstance(value, float):
        return '' if value is None else str(value)
    return f'{value:.0f}' if abs(value) >= 100 else f'{value:.3g}'


def report(title: str, rows: Sequence[Mapping[str, object]], device: torch.device, results: Mapping, path: str | Path | None):
    """Print the machine and one table; write `results`, the rows, the machine and the command as json where a path is given."""
    facts = machine(device)
    print(f'{title}\n{facts["device"]}; {facts["cpu"]}; {facts["versions"]}\n\n{table(rows)}', flush=True)
    if path:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = dict(results, rows=list(rows), machine=facts, command=shlex.join(sys.argv))
        write_file(path, json.dumps(content, indent=1) + '\n')
        print(f'\nWrote {path}')
