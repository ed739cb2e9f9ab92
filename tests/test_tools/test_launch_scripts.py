"""The shell scripts that start several processes, with real processes over gloo, and with a stand-in for Slurm's srun."""

import json
import os
import re
import signal
import socket
import subprocess
import sys

import pytest
from mmengine.config import Config

from mmcae.checkpoints import read_checkpoint
from mmcae.compat import has_accelerator
from mmcae.engine.launch import TORCHRUN, check_gpu_of_this_process, choose_launcher, infer_launcher
from mmcae.utils.errors import ConfigError

SRUN = """#!/usr/bin/env bash
# Prints how it was called, then runs the command as the tasks of a job on this machine.
while [[ $1 == --* ]]; do
    echo "srun option: $1"
    [[ $1 == --ntasks=* ]] && export SLURM_NTASKS=${1#*=}
    shift
done
export SLURM_NODELIST=localhost SLURM_STEP_NUM_TASKS=$SLURM_NTASKS
TASKS=()
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
    TASKS+=($!)
done
for task in "${TASKS[@]}"; do wait "$task" || exit $?; done
"""


AT_EXIT = """
import atexit
import os

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import distributed


@HOOKS.register_module()
class AtExit(Hook):
    def __init__(self, number):
        self.number = number

    def before_train(self, runner):
        # What is registered last runs first.
        atexit.register(lambda: print('communicating:', distributed.is_initialized(), flush=True))

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if self.number:
            os.kill(os.getpid(), self.number)
"""


@pytest.mark.skipif(has_accelerator(), reason='two processes would need two GPUs')
def test_two_processes_train_and_test(classification_config, run_tool, tmp_path):
    folder = tmp_path / 'run'
    code, output = run_tool('tools/dist_train.sh', classification_config, 2, '--work-dir', folder)
    assert code == 0, output
    assert 'Effective batch size 8 (2 processes x 4 images x 1 accumulated), lr 0.001' in output
    assert output.count('Effective batch size') == 1
    assert '1 synchronised batch norms compute the statistics of each process alone' in output
    assert 'Epoch(train) [2][1/1]' in output and read_checkpoint(folder / 'epoch_2.pth')['meta']['iter'] == 2

    resumed = ('--resume', '--cfg-options', 'train_cfg.max_epochs=3')
    code, output = run_tool('tools/dist_train.sh', classification_config, 2, '--work-dir', folder, *resumed)
    assert code == 0 and 'resumed epoch: 2, iter: 2' in output, output

    # The metric of two processes is that of all images, as the validation after the last epoch has printed it.
    printed = float(re.findall(r'Epoch\(val\) \[3\].*accuracy/top1: ([\d.]+)', output)[-1])
    code, output = run_tool('tools/dist_test.sh', classification_config, folder / 'epoch_3.pth', 2, '--work-dir', folder)
    assert code == 0, output
    assert json.loads((folder / 'metrics.json').read_text()) == {'accuracy/top1': pytest.approx(printed, abs=1e-3)}


@pytest.mark.skipif(has_accelerator(), reason='the stand-in for srun offers no GPU')
def test_slurm(classification_config, run_tool, tmp_path):
    commands = tmp_path / 'commands'
    commands.mkdir()
    for name, text in (('srun', SRUN), ('scontrol', '#!/usr/bin/env bash\necho localhost\n')):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    environment = dict(PATH=f'{commands}:{os.environ["PATH"]}', GPUS='2', GPUS_PER_NODE='0', SRUN_ARGS='--time=1:00:00 --account=me')
    folder = tmp_path / 'run'
    arguments = ('debug', 'tiny', classification_config, '--work-dir', folder, '--no-validate')
    code, output = run_tool('tools/slurm_train.sh', *arguments, env=environment)
    assert code == 0, output
    for option in ('--partition=debug', '--job-name=tiny', '--ntasks=2', '--ntasks-per-node=2', '--kill-on-bad-exit=1', '--account=me'):
        assert f'srun option: {option}\n' in output
    assert '--gres' not in output
    assert (folder / 'epoch_2.pth').exists() and output.count('(2 processes x 4 images') == 1

    environment.update(GPUS='1')
    code, output = run_tool('tools/slurm_test.sh', *arguments[:3], folder / 'epoch_2.pth', '--work-dir', folder, env=environment)
    assert code == 0 and 'srun option: --ntasks=1\n' in output, output
    assert 0 <= json.loads((folder / 'metrics.json').read_text())['accuracy/top1'] <= 100


@pytest.mark.skipif(has_accelerator(), reason='two processes would need two GPUs')
def test_two_machines(classification_config, repository, free_port, tmp_path):
    """Each with one process, started by the same command but for NODE_RANK; here both are this one."""
    folder = tmp_path / 'run'
    command = ['bash', 'tools/dist_train.sh', str(classification_config), '1', '--work-dir', str(folder), '--no-validate']
    meeting = dict(os.environ, PYTHON=sys.executable, NNODES='2', MASTER_ADDR='127.0.0.1', PORT=free_port())
    machines = [
        subprocess.Popen(
            command, cwd=repository, env=dict(meeting, NODE_RANK=str(rank)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for rank in range(2)
    ]
    outputs = [machine.communicate(timeout=300)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], '\n'.join(outputs)
    assert 'Effective batch size 8 (2 processes' in outputs[0] and 'Effective batch size' not in outputs[1]
    assert read_checkpoint(folder / 'epoch_2.pth')['meta']['iter'] == 2


@pytest.mark.parametrize(
    ('environment', 'launcher'),
    [
        (dict(), 'none'),
        (dict(RANK='1', LOCAL_RANK='1', WORLD_SIZE='2', MASTER_ADDR='127.0.0.1'), 'pytorch'),
        (dict(RANK='1'), 'none'),  # which other programs set as well
        (dict(SLURM_PROCID='0', SLURM_NTASKS='8'), 'none'),  # a batch script, outside of srun
        (dict(SLURM_PROCID='0', SLURM_NTASKS='8', SLURM_STEP_NUM_TASKS='8'), 'slurm'),
        (dict(SLURM_PROCID='0', SLURM_NTASKS='8', SLURM_STEP_NUM_TASKS='1'), 'none'),
        (dict(OMPI_COMM_WORLD_SIZE='2'), 'mpi'),
    ],
)
def test_the_launcher_is_found_out(monkeypatch, environment, launcher):
    for name in [name for name in os.environ if name.startswith(('SLURM_', 'OMPI_')) or name in TORCHRUN]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert infer_launcher() == launcher


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    monkeypatch.setattr('torch.cuda.device_count', lambda: 2)
    monkeypatch.setenv('LOCAL_RANK', '1')
    check_gpu_of_this_process()
    monkeypatch.setenv('LOCAL_RANK', '2')
    with pytest.raises(ConfigError, match='Process 2 of this machine .* has no GPU, because 2 can be seen'):
        check_gpu_of_this_process()


def test_restarts_by_a_torchrun_that_keeps_its_store_are_refused(monkeypatch):
    environment = dict(RANK='0', TORCHELASTIC_MAX_RESTARTS='1', TORCHELASTIC_USE_AGENT_STORE='True')
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match='TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1'):
        choose_launcher(Config(), 'pytorch')
    for name, value in (('TORCHELASTIC_MAX_RESTARTS', '0'), ('TORCHELASTIC_USE_AGENT_STORE', 'False')):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            choose_launcher(Config(), 'pytorch')


@pytest.mark.skipif(has_accelerator(), reason='over gloo')
def test_mpi(classification_config, run_tool, free_port, tmp_path):
    """As the only process of an mpirun, with what it puts into the environment."""
    ranks = {f'OMPI_COMM_WORLD_{name}': value for name, value in (('SIZE', '1'), ('RANK', '0'), ('LOCAL_RANK', '0'))}
    arguments = (classification_config, '--work-dir', tmp_path / 'run', '--launcher', 'mpi')
    code, output = run_tool('tools/train.py', *arguments, env=dict(ranks, MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port()))
    assert code == 0 and '(1 process x 4 images' in output, output


@pytest.mark.parametrize('script', ['dist_train', 'dist_test', 'slurm_train', 'slurm_test'])
def test_usage(run_tool, script):
    code, output = run_tool(f'tools/{script}.sh', 'config.py')
    assert code == 2 and f'usage: bash tools/{script}.sh' in output


REFUSED = {
    'dist_train': [
        (dict(), ['CONFIG', '0'], 'PROCESSES=0: expected a whole number of at least 1'),
        (dict(), ['CONFIG', 'two'], 'PROCESSES=two: expected'),
        (dict(), ['nowhere.py', '2'], 'There is no config nowhere.py'),
        (dict(NNODES='two'), ['CONFIG', '2'], 'NNODES=two: expected'),
        (dict(NNODES='2:1'), ['CONFIG', '2'], 'NNODES (the most)=1: expected a whole number of at least 2'),
        (dict(NNODES='2', NODE_RANK='2'), ['CONFIG', '2'], 'NODE_RANK=2: expected a whole number from 0 to 1'),
        (dict(PORT='70000'), ['CONFIG', '2'], 'PORT=70000: expected a whole number from 1 to 65535'),
        (dict(PORT='BUSY'), ['CONFIG', '2'], 'PORT=BUSY is in use on this machine'),
        (dict(MAX_RESTARTS='-1'), ['CONFIG', '2'], 'MAX_RESTARTS=-1: expected'),
    ],
    'dist_test': [(dict(), ['CONFIG', 'CHECKPOINT', '0'], 'PROCESSES=0: expected')],
    'slurm_train': [
        (dict(GPUS='0'), ['debug', 'tiny', 'CONFIG'], 'GPUS=0: expected'),
        (dict(GPUS_PER_NODE='all'), ['debug', 'tiny', 'CONFIG'], 'GPUS_PER_NODE=all: expected'),
        (dict(PORT='0'), ['debug', 'tiny', 'CONFIG'], 'PORT=0: expected'),
        (dict(), ['debug', 'tiny', 'CONFIG'], 'srun is not in PATH: this machine has no Slurm'),
    ],
    'slurm_test': [(dict(GPUS='0'), ['debug', 'tiny', 'CONFIG', 'CHECKPOINT'], 'GPUS=0: expected')],
}


@pytest.mark.parametrize(('script', 'case'), [(script, case) for script, cases in REFUSED.items() for case in cases])
def test_bad_input_of_the_scripts(run_tool, script, case):
    """One line, before any process starts."""
    environment, arguments, message = case
    with socket.socket() as busy:
        busy.bind(('127.0.0.1', 0))
        busy.listen()
        port = str(busy.getsockname()[1])
        environment = {name: value.replace('BUSY', port) for name, value in environment.items()}
        code, output = run_tool(f'tools/{script}.sh', *arguments, env=environment)
    assert code == 2 and output.startswith(f'error: {message.replace("BUSY", port)}') and output.count('\n') == 1


def job_scripts(repository):
    """Those of docs/faults.md: processes started by srun, and by torchrun."""
    return re.findall(r'```\n(#!/bin/bash\n.*?)```', (repository / 'docs/faults.md').read_text(), re.DOTALL)


@pytest.mark.parametrize(('code', 'requeued'), [(0, False), (138, True), (143, False), (2, False), (137, False)])
def test_the_job_script_of_the_manual(repository, tmp_path, code, requeued):
    """It goes back into the queue when its time was up (SIGUSR1), and not after scancel (SIGTERM) or an error; srun knows of the cores."""
    script, _ = job_scripts(repository)
    options = ' '.join(line.removeprefix('#SBATCH ') for line in script.splitlines() if line.startswith('#SBATCH'))
    assert '--cpus-per-task=10' in options and '--signal=USR1@' in options and '--requeue' in options
    for name, text in (
        ('srun', f'echo "$SRUN_CPUS_PER_TASK cores, port $MASTER_PORT: $@"\nexit {code}'),
        ('scontrol', 'echo "scontrol $@"'),
    ):
        (tmp_path / name).write_text(f'#!/usr/bin/env bash\n{text}\n')
        (tmp_path / name).chmod(0o755)
    (tmp_path / 'job.sh').write_text(script)
    environment = dict(os.environ, PATH=f'{tmp_path}:{os.environ["PATH"]}', SLURM_CPUS_PER_TASK='10', SLURM_JOB_ID='70123')
    done = subprocess.run(['bash', tmp_path / 'job.sh'], env=environment, capture_output=True, text=True)
    assert done.returncode == code and done.stderr == ''
    assert '10 cores, port 30123: --kill-on-bad-exit=1 python -u tools/train.py CONFIG --launcher slurm --resume' in done.stdout
    assert ('scontrol requeue 70123' in done.stdout) == requeued


@pytest.mark.skipif(has_accelerator(), reason='two processes would need two GPUs')
def test_the_job_script_for_torchrun(classification_config, repository, tmp_path):
    """A real training that torchrun has started: SIGUSR1 reaches its processes, which save, and the job goes back into the queue."""
    _, script = job_scripts(repository)
    config = tmp_path / 'long.py'
    config.write_text(
        f"_base_ = ['{classification_config}']\ntrain_cfg = dict(_delete_=True, type='mmcae.EpochBasedTrainLoop', max_epochs=1000)\n"
        "default_hooks = dict(checkpoint=dict(type='mmcae.CheckpointHook'))\n"
    )
    script = script.replace('CONFIG 8 --resume', f'{config} 2 --resume --no-validate --work-dir {tmp_path / "run"}')
    (tmp_path / 'job.sh').write_text(script)
    for name, text in (
        ('srun', 'while [[ $1 == --* ]]; do shift; done\nSLURM_NODEID=0 exec "$@"'),
        ('scontrol', '[ $1 = show ] && echo 127.0.0.1 || echo "scontrol $@"'),
    ):
        (tmp_path / name).write_text(f'#!/usr/bin/env bash\n{text}\n')
        (tmp_path / name).chmod(0o755)
    slurm = dict(SLURM_CPUS_PER_TASK='1', SLURM_JOB_ID=str(os.getpid()), SLURM_NNODES='1')
    environment = dict(os.environ, **slurm, PATH=f'{tmp_path}:{os.environ["PATH"]}', PYTHON=sys.executable)
    job = subprocess.Popen(
        ['bash', tmp_path / 'job.sh'], cwd=repository, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines = []
    for line in job.stdout:
        lines.append(line)
        if 'Epoch(train)' in line:
            job.send_signal(signal.SIGUSR1)
            break
    output = ''.join(lines) + job.communicate(timeout=300)[0]
    assert job.returncode == 1, output
    assert 'SIGUSR1: stopped after iteration' in output and len(list(tmp_path.glob('run/recovery_*.pth'))) == 1
    assert output.endswith(f'scontrol requeue {slurm["SLURM_JOB_ID"]}\n')


@pytest.mark.skipif(has_accelerator(), reason='two processes would need two GPUs')
@pytest.mark.parametrize('number', [None, signal.SIGTERM])
def test_processes_take_leave_of_each_other(classification_config, fork_tool, tmp_path, number):
    """At the end, and when they stop because of a signal; over NCCL nobody else does it for them."""
    (tmp_path / 'at_exit.py').write_text(AT_EXIT)
    hook = dict(type='AtExit', number=number and int(number))
    config = tmp_path / 'leaving.py'
    config.write_text(
        f"_base_ = ['{classification_config}']\ncustom_imports = dict(imports=['at_exit'])\n"
        f"train_cfg = dict(_delete_=True, type='mmcae.EpochBasedTrainLoop', max_epochs=1)\n"
        f"default_hooks = dict(at_exit={hook}, checkpoint=dict(type='mmcae.CheckpointHook'))\n"
    )
    arguments = (config, '--work-dir', tmp_path / 'run', '--no-validate')
    code, output = fork_tool('tools/train.py', *arguments, processes=2, env=dict(PYTHONPATH=str(tmp_path)))
    assert code == (143 if number else 0), output
    assert output.count('communicating: False') == 2 and 'communicating: True' not in output
