"""From a checked config to mmengine's Runner, on one process or many, with or without a GPU: shared by tools/train.py and tools/test.py."""

import os
from pathlib import Path

from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from .. import compat
from .errors import CheckpointError, ConfigError, nearest

# What each launcher leaves in the environment of the processes it starts.
LAUNCHERS = {'none': None, 'pytorch': 'RANK', 'slurm': 'SLURM_PROCID', 'mpi': 'OMPI_COMM_WORLD_LOCAL_RANK'}


def build_runner(cfg, launcher='none'):
    """Build the runner that a config describes.

    Args:
        cfg (Config): As returned by `load_config`, with a work_dir.
        launcher (str): 'none', or what started the processes: 'pytorch' (torchrun), 'slurm' or 'mpi'.

    Returns:
        Runner: Ready to train or test.

    Raises:
        ConfigError: The launcher has not started this process.
    """
    variable = LAUNCHERS[launcher]
    if variable and variable not in os.environ:
        raise ConfigError(
            f'--launcher {launcher}, but {variable} is not in the environment: start by tools/dist_train.sh or tools/slurm_train.sh'
        )
    if launcher == 'mpi':
        if 'MASTER_ADDR' not in os.environ:
            raise ConfigError('--launcher mpi needs MASTER_ADDR in the environment: the address of the machine of rank 0')
        os.environ.setdefault('LOCAL_RANK', os.environ[variable])  # which mmengine reads, but sets for the other launchers only
    cfg.launcher = launcher
    if launcher != 'none' and not compat.has_accelerator():
        distribute_over_cpus(cfg)
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def is_first():
    """Whether this process is the one to speak, before the processes have met: rank 0, or alone."""
    return all(os.environ.get(name, '0') == '0' for name in ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK'))


def distribute_over_cpus(cfg):
    """Join the processes by gloo and have the model wrapped for it.

    Args:
        cfg (Config): Changed in place: its model_wrapper_cfg.
    """
    compat.init_distributed(cfg.launcher, **cfg.get('env_cfg', {}).get('dist_cfg', {}))
    wrapper = cfg.get('model_wrapper_cfg') or dict(broadcast_buffers=False, find_unused_parameters=cfg.get('find_unused_parameters', False))
    if wrapper.get('type', 'MMDistributedDataParallel') == 'MMDistributedDataParallel':
        wrapper['type'] = 'mmcae.CPUDistributedDataParallel'
    cfg.model_wrapper_cfg = wrapper


def require_checkpoint(path):
    """Refuse a checkpoint that does not exist before anything slow begins.

    Args:
        path (str): A local path; anything with a scheme (https://, ...) is left to mmengine.

    Raises:
        CheckpointError: With the most similar names in the same folder.
    """
    path = Path(path).expanduser() if '://' not in str(path) else None
    if path and not path.is_file():
        there = [file.name for file in path.parent.glob('*.pth')] if path.parent.is_dir() else []
        raise CheckpointError(f'There is no checkpoint {path}{nearest(path.name, there)}')


def refuse_other_models(runner):
    """Have the runner refuse a checkpoint that does not fit its model, tensor by tensor; mmengine only warns and goes on with random
    weights.

    For testing and resuming, where the checkpoint has to be of this very model. Starting from other weights goes through
    `init_cfg=dict(type='Pretrained', ...)` or `load_from` and has rules of its own.

    Args:
        runner (Runner): Changed in place.
    """
    load_checkpoint = runner.load_checkpoint

    def load_strictly(filename, *args, **kwargs):
        try:
            return load_checkpoint(filename, *args, **dict(kwargs, strict=True))
        except RuntimeError as error:
            if 'do not match exactly' not in str(error):
                raise
            raise CheckpointError(f'{filename} belongs to another model than {runner.cfg.filename} describes. {_shorten(error)}') from error

    runner.load_checkpoint = load_strictly


def _shorten(error, most=400):
    text = ' '.join(str(error).split()).replace('The model and loaded state dict do not match exactly', '').strip()
    return text if len(text) <= most else text[:most] + ' ...'
