"""The shell scripts that start several processes, with real processes over gloo, and with a stand-in for Slurm's srun."""

import json
import os
import re
import socket

import pytest
import torch

from mmcae.compat import has_accelerator

SRUN = """#!/usr/bin/env bash
# Prints how it was called, then runs the command as the only task of a job.
while [[ $1 == --* ]]; do echo "srun option: $1"; shift; done
export SLURM_PROCID=0 SLURM_NTASKS=1 SLURM_LOCALID=0 SLURM_NODELIST=localhost
exec "$@"
"""


@pytest.mark.skipif(has_accelerator(), reason='two processes would need two GPUs')
def test_two_processes_train_and_test(classification_config, run_tool, tmp_path):
    folder = tmp_path / 'run'
    code, output = run_tool('tools/dist_train.sh', classification_config, 2, '--work-dir', folder)
    assert code == 0, output
    assert 'Effective batch size 8 (2 processes x 4 images x 1 accumulated), lr 0.001' in output
    assert output.count('Effective batch size') == 1
    assert '1 synchronised batch norms compute the statistics of each process alone' in output
    assert 'Epoch(train) [2][1/1]' in output and torch.load(folder / 'epoch_2.pth', weights_only=True)['meta']['iter'] == 2

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
    environment = dict(PATH=f'{commands}:{os.environ["PATH"]}', GPUS='1', GPUS_PER_NODE='0', SRUN_ARGS='--time=1:00:00 --account=me')
    folder = tmp_path / 'run'
    arguments = ('debug', 'tiny', classification_config, '--work-dir', folder)
    code, output = run_tool('tools/slurm_train.sh', *arguments, env=environment)
    assert code == 0, output
    for option in ('--partition=debug', '--job-name=tiny', '--ntasks=1', '--ntasks-per-node=1', '--kill-on-bad-exit=1', '--account=me'):
        assert f'srun option: {option}\n' in output
    assert '--gres' not in output
    assert (folder / 'epoch_2.pth').exists() and '(1 process x 4 images' in output


@pytest.mark.skipif(has_accelerator(), reason='over gloo')
def test_mpi(classification_config, run_tool, tmp_path):
    """As the only process of an mpirun, with what it puts into the environment."""
    ranks = {f'OMPI_COMM_WORLD_{name}': value for name, value in (('SIZE', '1'), ('RANK', '0'), ('LOCAL_RANK', '0'))}
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    arguments = (classification_config, '--work-dir', tmp_path / 'run', '--launcher', 'mpi')
    code, output = run_tool('tools/train.py', *arguments, env=dict(ranks, MASTER_ADDR='127.0.0.1', MASTER_PORT=port))
    assert code == 0 and '(1 process x 4 images' in output, output


@pytest.mark.parametrize('script', ['dist_train', 'dist_test', 'slurm_train', 'slurm_test'])
def test_usage(run_tool, script):
    code, output = run_tool(f'tools/{script}.sh', 'config.py')
    assert code == 2 and f'usage: bash tools/{script}.sh' in output
