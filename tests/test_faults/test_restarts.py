"""torchrun starts processes again when one dies, and when a machine is lost or comes back, as docs/distributed.md says."""

import os
import signal
import subprocess
import sys
import time

import pytest

LOSSES = """
import os
import signal
import time
from pathlib import Path

from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class Losses(Hook):
    '''What happens to a process: in an iteration its machine is lost, torchrun included, or it waits until others come.'''

    def __init__(self, folder, processes=(), machine=None, wait=None):
        self.folder, self.processes, self.machine, self.wait = Path(folder), processes, machine, wait

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if (runner.iter + 1, runner.rank) in map(tuple, self.processes) and self.first('process'):
            os.kill(os.getpid(), signal.SIGKILL)
        if runner.iter + 1 == self.machine and runner.rank == 0 and self.first('machine'):
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        if runner.world_size == 1 and runner.iter + 1 == self.wait and self.first('alone'):
            checkpoint = next(hook for hook in runner.hooks if hasattr(hook, 'signals'))
            end = time.monotonic() + 120
            while not checkpoint.signals.received and time.monotonic() < end:  # torchrun's SIGTERM before it starts all of them again
                time.sleep(0.05)

    def first(self, name):
        file = self.folder / name
        return not file.exists() and not file.touch()
"""


@pytest.fixture
def losing(variant, tmp_path):
    """A config whose processes get lost; see LOSSES."""

    def make(**losses):
        (tmp_path / 'losses.py').write_text(LOSSES)
        return variant(
            f"custom_imports = dict(imports=['losses'])\nrandomness = dict(seed=3)\n"
            f'default_hooks = dict(losses=dict(type="Losses", folder="{tmp_path}", **{losses}), checkpoint=dict(recovery_interval=1))\n'
        )

    return make


def test_a_killed_process(losing, start, read, differences, run_tool, tmp_path):
    """What comes out is what would have been without, to the last bit: no iteration is lost or made twice."""
    whole = start(work_dir=tmp_path / 'whole', options=['randomness.seed=3'], processes=2)
    config, run = losing(processes=[(5, 1)]), tmp_path / 'run'
    settings = dict(MAX_RESTARTS='1', PYTHONPATH=str(tmp_path))
    code, output = run_tool('tools/dist_train.sh', config, 2, '--resume', '--work-dir', run, env=settings)
    assert code == 0 and output.count('resumed epoch: 1, iter: 4') == 1, output
    assert f'resumed from {run}/recovery_4.pth' in output and 'exitcode: -9' in output
    assert [training.wait() for training in whole] == [0, 0]
    whole, run = read(tmp_path / 'whole/epoch_3.pth'), read(run / 'epoch_3.pth')
    assert len(run['message_hub']['log_scalars']['train/loss']['history']) == 9 and differences(whole, run) == []


class Machine:
    """torchrun as on a machine of its own, at a loopback address."""

    def __init__(self, repository, address, config, work_dir, environment):
        waits = 'keep_alive_interval=1,keep_alive_max_attempt=15,last_call_timeout=1'  # seconds: it takes 15 to be lost, in place of 30
        is_host = int(address == environment['MASTER_ADDR'])  # torchrun compares addresses of machines, and this is one machine
        settings = dict(environment, PET_LOCAL_ADDR=address, PET_RDZV_CONF=f'{waits},is_host={is_host}')
        command = ['bash', 'tools/dist_train.sh', str(config), '1', '--resume', '--work-dir', str(work_dir)]
        self.output = work_dir.parent / f'{address}_{os.urandom(4).hex()}.txt'
        with self.output.open('w') as output:
            self.process = subprocess.Popen(
                command, cwd=repository, env=settings, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait(self):
        return self.process.wait(timeout=300)

    @property
    def text(self):
        return self.output.read_text(errors='replace')


@pytest.fixture
def machine(repository, free_port, tmp_path):
    started, port = [], free_port()

    def start(address, config):
        settings = dict(MAX_RESTARTS='3', NNODES='1:2', MASTER_ADDR='127.0.0.2', PORT=port, PYTHONPATH=str(tmp_path), PYTHON=sys.executable)
        started.append(Machine(repository, address, config, tmp_path / 'run', os.environ | settings))
        return started[-1]

    yield start
    for process in started:
        if process.process.poll() is None:
            os.killpg(process.process.pid, signal.SIGKILL)


def test_a_lost_machine(losing, machine, read, tmp_path):
    """The one of the first process is lost with its torchrun; the other goes on alone, and with both when the lost one is back."""
    config = losing(machine=3, wait=10)
    stays, lost = machine('127.0.0.2', config), machine('127.0.0.1', config)
    assert lost.wait() == -signal.SIGKILL, lost.text
    end = time.monotonic() + 200
    while not (tmp_path / 'alone').exists():
        assert stays.process.poll() is None and time.monotonic() < end, stays.text
        time.sleep(0.1)
    back = machine('127.0.0.1', config)
    assert [stays.wait(), back.wait()] == [0, 0], stays.text + back.text
    # An epoch is three iterations of two processes, or six of one: of the first and the second epoch two thirds are done when it changes.
    assert 'Effective batch size 4 (2 processes' in lost.text and 'Effective batch size 2 (1 process ' in stays.text
    assert 'Effective batch size 4 (2 processes' in back.text
    assert 'recovery_2.pth' in stays.text and 'recovery_10.pth' in back.text
    assert 'resumed epoch: 0, iter: 4' in stays.text and 'resumed epoch: 1, iter: 5' in back.text
    meta = read(tmp_path / 'run/epoch_3.pth')['meta']
    assert (meta['epoch'], meta['iter']) == (3, 9)
