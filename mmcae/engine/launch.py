"""From a checked config to mmengine's Runner, on one process or many, with or without a GPU: shared by mmcae train and mmcae test."""

import os
from pathlib import Path

import torch
from mmengine.config import ConfigDict
from mmengine.dist import init_dist, is_distributed
from mmengine.registry import RUNNERS
from mmengine.utils.dl_utils import set_multi_processing

from .. import compat
from ..checkpoints.pieces import first_piece
from ..utils.configs.dumped import make_portable
from ..utils.errors import CheckpointError, ConfigError, DataError, nearest
from . import fsdp2
from .distributed import ddp_settings

# What each launcher leaves in the environment of the processes it starts.
LAUNCHERS = {'auto': None, 'none': None, 'pytorch': 'RANK', 'slurm': 'SLURM_PROCID', 'mpi': 'OMPI_COMM_WORLD_LOCAL_RANK'}
# What torchrun leaves in the environment of every process.
TORCHRUN = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR')


def build_runner(cfg, launcher='none'):
    """Build the runner that a config describes.

    Args:
        cfg (Config): As returned by `load_config`, with a work_dir.
        launcher (str): 'none', or what started the processes: 'pytorch' (torchrun), 'slurm' or 'mpi'; 'auto' looks at the environment.

    Returns:
        Runner: Ready to train or test.

    Raises:
        ConfigError: A part of the config is missing that another part needs. The launcher has not started this process, or has started more
            processes here than there are GPUs.
        DependencyError: The config trains by DeepSpeed, which is not installed.
    """
    check_complete(cfg)
    choose_launcher(cfg, launcher)
    keep_local_logs(cfg)
    if 'DeepSpeed' in str((cfg.get('strategy') or {}).get('type')):
        compat.require_deepspeed()
        cfg.strategy.setdefault('train_micro_batch_size_per_gpu', (cfg.get('train_dataloader') or {}).get('batch_size', 1))
    if cfg.launcher != 'none' and compat.has_accelerator():
        check_gpu_of_this_process()
    elif cfg.launcher != 'none':
        distribute_over_cpus(cfg)
    if cfg.get('runner_type') == 'FlexibleRunner':
        cfg.setdefault('env_cfg', ConfigDict())  # which Runner does by itself
        cfg.strategy = cfg.get('strategy') or ConfigDict(type='SingleDeviceStrategy' if cfg.launcher == 'none' else 'DDPStrategy')
        if cfg.strategy.get('type') in ('SingleDeviceStrategy', 'DDPStrategy', 'FSDPStrategy', 'FSDP2Strategy', 'DeepSpeedStrategy'):
            cfg.strategy.type = f'mmcae.{cfg.strategy.type}'  # with checkpoints that appear whole
        if cfg.strategy.get('type') == fsdp2.NAME:
            fsdp2.check_combination(cfg)
    from . import Runner, reader

    reader.register()
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    count_accumulated(runner)
    if runner.rank == 0:
        make_portable(runner)
    return runner


def count_accumulated(runner):
    """Have the learning rate scaled by all images of an update: mmengine's count leaves gradient accumulation out."""
    cfg = runner.cfg
    scaling, accumulated = cfg.get('auto_scale_lr') or {}, (cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1)
    if scaling.get('enable'):
        counted = dict(scaling, base_batch_size=scaling['base_batch_size'] / accumulated)
        if hasattr(runner, 'strategy'):
            runner.strategy._auto_scale_lr = counted
        else:
            runner.auto_scale_lr = counted


def keep_local_logs(cfg):
    """Write `vis_data/scalars.json` beside whatever other backends a config names: curves and reports are made of it.

    Args:
        cfg (Config): Changed in place.
    """
    visualizer = cfg.get('visualizer')
    if isinstance(visualizer, dict):
        backends = visualizer.get('vis_backends') or []
        if not any(str(backend.get('type')).endswith('LocalVisBackend') for backend in backends):
            visualizer.vis_backends = [*backends, ConfigDict(type='LocalVisBackend')]


def choose_launcher(cfg, launcher):
    """Set the config's launcher, after looking at what the environment says.

    Args:
        cfg (Config): Changed in place.
        launcher (str): As for :func:`build_runner`.

    Raises:
        ConfigError: The launcher has not started this process, or could not start it again.
    """
    if launcher == 'auto':
        launcher = infer_launcher()
    variable = LAUNCHERS[launcher]
    if variable and variable not in os.environ:
        raise ConfigError(
            f'--launcher {launcher}, but {variable} is not in the environment: start by tools/dist_train.sh or tools/slurm_train.sh'
        )
    if launcher == 'pytorch':
        check_restarts()
    if launcher == 'mpi':
        if 'MASTER_ADDR' not in os.environ:
            raise ConfigError('--launcher mpi needs MASTER_ADDR in the environment: the address of the machine of rank 0')
        os.environ.setdefault('LOCAL_RANK', os.environ[variable])  # which mmengine reads, but sets for the other launchers only
    cfg.launcher = launcher


def check_restarts():
    """Refuse restarts by torchrun after which processes would look for each other at the addresses of those that have died.

    torch 2.13 has them meet in the store of the first start, with all that is written there; see docs/distributed.md.

    Raises:
        ConfigError: With the remedy.
    """
    if os.environ.get('TORCHELASTIC_MAX_RESTARTS', '0') != '0' and os.environ.get('TORCHELASTIC_USE_AGENT_STORE') == 'True':
        raise ConfigError(
            'torchrun --max-restarts: set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment and --standalone or --rdzv-backend=c10d, '
            'else processes that start again wait for those that have died. MAX_RESTARTS=N bash tools/dist_train.sh sets all of them'
        )


def join_processes(cfg):
    """Have the processes of a launcher meet now, and not when the runner is built; DeepSpeed on GPUs has its own way and time.

    Args:
        cfg (Config): With its launcher.
    """
    if cfg.launcher == 'none' or is_distributed():
        return
    environment = cfg.get('env_cfg', {})
    set_multi_processing(**environment.get('mp_cfg', {}), distributed=True)  # else joining chooses how workers are started
    options = environment.get('dist_cfg', {})
    if not compat.has_accelerator():
        compat.init_distributed(cfg.launcher, **options)
    elif 'DeepSpeed' not in str((cfg.get('strategy') or {}).get('type')):
        check_gpu_of_this_process()
        init_dist(cfg.launcher, **options)


def is_first():
    """Whether this process is the one to speak, before the processes have met: rank 0, or alone."""
    return all(os.environ.get(name, '0') == '0' for name in ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK'))


def check_complete(cfg):
    """Refuse a config that has some of the parts of a training, a validation or a test, but not all.

    Args:
        cfg (Config): A whole config.

    Raises:
        ConfigError: With what it lacks.
    """
    for split in ('train', 'val', 'test'):
        parts = [f'{split}_dataloader', f'{split}_cfg', 'optim_wrapper' if split == 'train' else f'{split}_evaluator']
        missing = [part for part in parts if cfg.get(part) is None]
        if 0 < len(missing) < 3:
            there = ', '.join(part for part in parts if part not in missing)
            remedy = ', or train without it by --no-validate' if split == 'val' else ''
            raise ConfigError(f'The config has {there}, but no {" and no ".join(missing)}: set all three or none{remedy}')


def require_batches(runner):
    """Refuse a training whose dataloader makes no batch, in which nothing would be learned without a word.

    Args:
        runner (Runner): Before training; its train loop is built.

    Raises:
        DataError: There are fewer images than one step takes.
    """
    loader = runner.train_loop.dataloader
    endless = type(getattr(loader, 'sampler', None)).__name__ == 'InfiniteSampler'
    if len(loader) == 0 and not endless:
        size = runner.cfg.train_dataloader.batch_size  # the loader itself does not know it where a batch sampler makes the batches
        raise DataError(
            f'train_dataloader makes no batch: {len(loader.dataset)} images are too few for batch_size={size} in '
            f'{runner.world_size} processes with drop_last=True; lower the batch size'
        )


def infer_launcher():
    """What started this process, so that forgetting --launcher does not make every process train a model of its own.

    Returns:
        str: 'pytorch' under torchrun, 'slurm' in a step of srun with several tasks, 'mpi' under mpirun with several, else 'none'.
    """
    if all(name in os.environ for name in TORCHRUN):
        return 'pytorch'
    # Not SLURM_NTASKS, which the batch script itself has too: a tool that it starts without srun is alone.
    if int(os.environ.get('SLURM_STEP_NUM_TASKS', 1)) > 1:
        return 'slurm'
    return 'mpi' if int(os.environ.get('OMPI_COMM_WORLD_SIZE', 1)) > 1 else 'none'


def check_gpu_of_this_process():
    """Refuse more processes on a machine than it has GPUs, before torch does it with an error about an ordinal.

    Raises:
        ConfigError: This process has none.
    """
    number = int(os.environ.get('LOCAL_RANK') or os.environ.get('SLURM_LOCALID') or 0)
    if torch.cuda.is_available() and number >= torch.cuda.device_count():
        raise ConfigError(
            f'Process {number} of this machine (from 0) has no GPU, because {torch.cuda.device_count()} can be seen: start one process for '
            'each GPU, and let every process see all of them (Slurm: --gres=gpu:N, not --gpus-per-task)'
        )


def distribute_over_cpus(cfg):
    """Have the model wrapped for gloo, and for FlexibleRunner join the processes by it.

    Args:
        cfg (Config): Changed in place: its model_wrapper_cfg, and for FlexibleRunner the model_wrapper of its strategy.
    """
    join_processes(cfg)
    wrapper = ddp_settings(cfg.get('model_wrapper_cfg'), cfg.get('find_unused_parameters', False))
    if wrapper['type'] == 'MMDistributedDataParallel':
        wrapper['type'] = 'mmcae.CPUDistributedDataParallel'
    cfg.model_wrapper_cfg = wrapper
    if cfg.get('runner_type') == 'FlexibleRunner':
        cfg.strategy = cfg.get('strategy') or ConfigDict(type='DDPStrategy')
        if cfg.strategy.get('type') in ('DDPStrategy', 'mmcae.DDPStrategy'):
            cfg.strategy.model_wrapper = wrapper


def require_checkpoint(path):
    """Refuse a checkpoint that does not exist before anything slow begins.

    Args:
        path (str): A local path; anything with a scheme (https://, ...) is left to mmengine.

    Raises:
        CheckpointError: With the most similar names in the same folder.
    """
    path = Path(path).expanduser() if '://' not in str(path) else None
    if path and not path.is_file() and first_piece(path) is None:
        there = [file.name for file in path.parent.glob('*.pth')] if path.parent.is_dir() else []
        raise CheckpointError(f'There is no checkpoint {path}{nearest(path.name, there)}')
