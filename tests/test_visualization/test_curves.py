"""Curves: every logged point, from the newest log, one line per run."""

import json
import os
import subprocess
import sys

import pytest

from mmcae.utils.errors import DataError
from mmcae.visualization.curves import plot_curves, read_scalars


def write_log(folder, name, entries):
    path = folder / name / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text(''.join(json.dumps(entry) + '\n' for entry in entries))


@pytest.fixture
def work_dir(tmp_path):
    write_log(tmp_path, '20260101_000000', [dict(loss=9.0, step=10)])
    write_log(
        tmp_path,
        '20260102_000000',
        [
            dict(loss=2.0, lr=0.1, time=0.5, iter=10, step=10),
            dict(loss=1.0, lr=0.05, time=0.5, iter=20, step=20),
            {'accuracy/top1': 80.0, 'step': 20},
        ],
    )
    return tmp_path


def test_of_a_run_started_anew_the_newest_log_is_read(work_dir):
    series = read_scalars(work_dir)
    assert series['loss'] == [(10, 2.0), (20, 1.0)] and series['accuracy/top1'] == [(20, 80.0)]
    assert read_scalars(work_dir / '20260101_000000/vis_data/scalars.json') == dict(loss=[(10, 9.0)])


def test_a_resumed_run_is_one_curve(tmp_path):
    write_log(tmp_path, '20260101_000000', [dict(loss=9.0, step=step) for step in (10, 20, 30)] + [dict(acc=5.0, step=20)])
    write_log(tmp_path, '20260102_000000', [dict(loss=1.0, step=step) for step in (30, 40)])
    assert read_scalars(tmp_path) == dict(acc=[(20, 5.0)], loss=[(10, 9.0), (20, 9.0), (30, 1.0), (40, 1.0)])
    write_log(tmp_path, '20260103_000000', [])  # a start that logged nothing
    assert read_scalars(tmp_path)['loss'][-1] == (40, 1.0)
    write_log(tmp_path, '20260104_000000', [dict(loss=7.0, step=10)])  # started anew
    assert read_scalars(tmp_path) == dict(loss=[(10, 7.0)])


def test_a_folder_without_log_is_refused(tmp_path):
    with pytest.raises(DataError, match='work dir'):
        read_scalars(tmp_path)


def lines(figure):
    return {axis.get_title(): [line.get_xydata().tolist() for line in axis.lines] for axis in figure.axes if axis.get_visible()}


def test_losses_and_metrics_that_changed_are_plotted_by_default(work_dir):
    run = read_scalars(work_dir)
    assert lines(plot_curves(dict(run=run))) == {'loss': [[[10, 2], [20, 1]]]}
    run['accuracy/top1'].append((40, 90.0))
    assert lines(plot_curves(dict(run=run))) == {'loss': [[[10, 2], [20, 1]]], 'accuracy/top1': [[[20, 80], [40, 90]]]}
    with pytest.raises(DataError, match='there are lr, accuracy'):
        plot_curves(dict(run=dict(lr=[(1, 0.1), (2, 0.2)], accuracy=[(1, 80.0)])))


def test_quantities_can_be_chosen_and_runs_compared(work_dir):
    runs = dict(first=read_scalars(work_dir), second=dict(lr=[(1, 3.0)]))
    figure = plot_curves(runs, ['lr'])
    assert lines(figure) == {'lr': [[[10, 0.1], [20, 0.05]], [[1, 3.0]]]}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ['first', 'second']
    with pytest.raises(DataError, match='accuracy.*there are loss, lr, time, accuracy/top1'):
        plot_curves(runs, ['accuracy'])


def test_drawing_leaves_the_backend_alone(tmp_path):
    """In a notebook or a window of the user's: importing our modules and drawing with them switches nothing, and opens no figure."""
    code = (
        'import pkgutil, importlib, sys, matplotlib, mmcae.visualization as v\n'
        'for module in pkgutil.iter_modules(v.__path__): importlib.import_module(f"mmcae.visualization.{module.name}")\n'
        'from mmcae.visualization.curves import plot_curves\n'
        'from mmcae.visualization.sheet import save_picture\n'
        'save_picture(plot_curves(dict(a=dict(loss=[(1, 2.0), (2, 1.0)]))), "curves.png")\n'
        'assert matplotlib.get_backend() == "template"\n'
        'assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()\n'
    )
    environment = dict(os.environ, MPLBACKEND='template')  # one that matplotlib has and nobody would choose
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'curves.png').stat().st_size > 1000
