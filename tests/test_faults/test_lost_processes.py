"""Loader workers and ranks that die: the others end soon, with one line that says why."""

import os
import signal
import time

LONG = ['train_cfg.max_epochs=1000']


def the_error(training):
    assert training.wait() == 2 and 'Traceback' not in training.text, training.text
    return training.text.strip().splitlines()[-1]


def test_loader_worker(start):
    training = start(options=LONG)
    training.wait_for(r'Epoch\(train\) +\[1\]\[2/6\]')
    (worker,) = training.children()
    os.kill(worker, signal.SIGKILL)
    line = the_error(training)
    assert line.startswith(f'error: DataLoader worker (pid {worker}) is killed by signal: Killed. Most often the system killed it') or (
        line.startswith('error: DataLoader worker') and str(worker) in line and 'exited unexpectedly' in line
    )
    assert 'go on with --resume' in line


def test_signals_to_all_processes_leave_the_loader_workers_at_work(start, tmp_path):
    """Slurm signals every process of a job step, a terminal every process in its foreground; the main process decides."""
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)):
        training = start('--resume', options=LONG)
        training.wait_for(r'Epoch\(train\) +\[\d+\]\[2/6\]')
        training.send_to_all(number)
        training.send_to_all(number)  # torchrun passes on what its children have got already
        assert training.wait() == code, training.text
        assert 'Traceback' not in training.text and 'saved it to' in training.text
        newest = max(tmp_path.glob('run/recovery_*.pth'), key=lambda path: path.stat().st_mtime_ns)
        assert f'stopped after iteration {newest.stem.removeprefix("recovery_")}' in training.text.replace('Stopped', 'stopped')


def test_rank_that_is_killed(start):
    first, second = start(options=LONG, processes=2)
    first.wait_for(r'Epoch\(train\) +\[1\]\[2/3\]')
    second.send_to_all(signal.SIGKILL)
    line = the_error(first)
    assert line.startswith('error (rank 0): Another process of this training has died') and '--resume' in line
    assert second.wait() == -signal.SIGKILL


def test_rank_that_hangs(start):
    """The other gives up after env_cfg.dist_cfg.timeout."""
    first, second = start(options=[*LONG, 'env_cfg.dist_cfg.timeout=3'], processes=2)
    first.wait_for(r'Epoch\(train\) +\[1\]\[2/3\]')
    second.send_to_all(signal.SIGSTOP)
    stopped = time.monotonic()
    line = the_error(first)
    assert 'has not answered for env_cfg.dist_cfg.timeout seconds' in line
    assert time.monotonic() - stopped < 30
