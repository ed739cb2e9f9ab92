"""Curves of what training logged."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ..utils.errors import DataError
from ..utils.text_files import parse_json, read_text

Series = dict[str, list[tuple[float, float]]]
BOOKKEEPING = {'lr', 'base_lr', 'time', 'data_time', 'memory', 'epoch', 'iter', 'step', 'grad_norm'}


def read_scalars(work_dir: str | Path) -> Series:
    """What mmengine logged in a work dir, or in one log: for each name the points (step, value).

    A run that was resumed has a log for each start; what a later one has logged from its first step on takes the place of what was there.
    So of a run that was started anew the newest counts.

    Raises:
        DataError: There is no log, or it is of another kind.
    """
    work_dir = Path(work_dir)
    logs = [work_dir] if work_dir.is_file() else sorted(work_dir.glob('*/vis_data/scalars.json'))
    if not logs:
        raise DataError(f'There is no */vis_data/scalars.json in {work_dir}: is it the work dir of a training run?')
    joined: Series = {}
    for log in logs:
        newer = read_log(log)
        began = {name: min(step for step, _ in points) for name, points in newer.items()}
        anew = any(name in joined and began[name] <= joined[name][0][0] for name in newer)
        for name, points in [] if anew else joined.items():
            newer[name] = [point for point in points if point[0] < began.get(name, math.inf)] + newer.get(name, [])
        joined = newer or joined
    return joined


def read_log(log: Path) -> Series:
    """The points of one log."""
    series: Series = {}
    for number, line in enumerate(read_text(log).splitlines(), 1):
        entry = parse_json(line, f'{log}, line {number},')
        if not isinstance(entry, dict):
            raise DataError(f'{log}, line {number}, is no entry of a log: {line[:40]}')
        step = entry.get('step', entry.get('iter'))
        for name, value in entry.items():
            if isinstance(value, int | float) and name not in ('step', 'iter', 'epoch'):
                series.setdefault(name, []).append((step, value))
    return series


def plot_curves(runs: Mapping[str, Series], names: Sequence[str] = ()) -> Figure:
    """One panel per quantity, one line per run.

    Args:
        runs: What :func:`read_scalars` gave, by the name for the legend.
        names: Quantities to plot; by default all losses and metrics logged more than once, without learning rates, times and the like.

    Returns:
        A figure that belongs to no window and to no backend of pyplot's.

    Raises:
        DataError: A quantity that no run has logged.
    """
    known = list(dict.fromkeys(name for series in runs.values() for name in series))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise DataError(f'No run has logged {", ".join(unknown)}; there are {", ".join(known)}')
    curves = {name for series in runs.values() for name, points in series.items() if len(points) > 1}
    names = list(names) or [name for name in known if name in curves and name not in BOOKKEEPING]
    if not names:
        raise DataError(
            f'Nothing was logged more than once in {", ".join(runs)}: name the quantities to plot; there are {", ".join(known)}'
        )
    columns = 2 if len(names) in (2, 4) else min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4.2 * columns, 3 * rows), layout='constrained')
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, name in zip(axes.flat, names, strict=False):
        for number, (label, series) in enumerate(runs.items()):
            if name in series:
                steps, values = zip(*series[name], strict=True)
                axis.plot(steps, values, label=label, color=f'C{number}', marker='.' if len(steps) < 30 else None)
        axis.set(title=name, xlabel='step')
        axis.grid(alpha=0.3)
        axis.spines[['top', 'right']].set_visible(False)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    if len(runs) > 1:
        lines = {line.get_label(): line for axis in axes.flat for line in axis.lines}
        figure.legend(lines.values(), lines.keys(), loc='outside upper center', ncols=len(runs), frameon=False)
    return figure
