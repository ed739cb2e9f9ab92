"""Train whatever a config describes: pretraining, classification, detection or segmentation.

    mmcae train cae/cae_vit-small_folder data_root=FOLDER     # a config that comes with mmcae, by its name: mmcae configs list
    mmcae train CONFIG --dry-run                              # what it would do, how long, in how much memory
    mmcae train CONFIG --resume                               # go on after an interruption
    mmcae train CONFIG train_dataloader.batch_size=32 randomness.seed=1 randomness.deterministic=True

On several GPUs or machines: tools/dist_train.sh, tools/slurm_train.sh. What cannot work ends with one line and exit code 2;
MMCAE_TRACEBACK=1 in the environment shows where it was raised.
"""

import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

from .arguments import add_changes, add_launcher


def add_arguments(parser):
    parser.add_argument('config', help='a config file, or the name of one that comes with mmcae')
    parser.add_argument('--work-dir', help='where checkpoints and logs go (default: work_dirs/NAME_OF_THE_CONFIG)')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from this checkpoint; without a name from the newest in the work dir, or from the start if there is none',
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision: bfloat16 where the machine has it, else float16')
    parser.add_argument('--auto-scale-lr', action='store_true', help="scale the config's lr linearly by batch size / base_batch_size")
    parser.add_argument('--dry-run', action='store_true', help='build everything, run one batch, print the plan, and write nothing')
    parser.add_argument('--no-validate', action='store_true', help='no evaluation while training')
    add_changes(parser)
    add_launcher(parser)


def check(args, parser):
    if args.resume and '=' in args.resume and not Path(args.resume).exists():  # `--resume lr=1e-3` names no checkpoint
        args.changes.append(args.resume)
        args.resume = 'auto'


def run(args):
    from ..utils.configs.loading import load_config, set_work_dir

    cfg = load_config(args.config, [*args.changes, *args.cfg_options])
    if args.dry_run:
        return plan(cfg, args)
    set_work_dir(cfg, args.work_dir, cfg.filename)
    return train(cfg, args)


def train(cfg, args):
    """Train as a config says, with what the command line adds to it; returns the path of the last checkpoint."""
    from ..compat import leave_distributed
    from ..engine.launch import build_runner, require_batches
    from ..engine.resume import choose_checkpoint
    from ..engine.work_dir import hold_work_dir
    from ..utils.configs.loading import last_checkpoint
    from ..utils.output import lasting_output

    prepare(cfg, args)
    with lasting_output(), hold_work_dir(cfg, args.launcher):
        if cfg.get('resume'):
            choose_checkpoint(cfg)
        runner = build_runner(cfg, cfg.launcher)
        require_batches(runner)
        if runner.rank == 0:
            print(summary(cfg, runner.world_size), flush=True)
        with live_progress(runner):
            runner.train()
        leave_distributed()
    return Path(cfg.work_dir, last_checkpoint(cfg))


def plan(cfg, args):
    """Print what a training would do; nothing is written."""
    from ..compat import leave_distributed
    from ..engine.dry_run import dry_run
    from ..engine.launch import build_runner, choose_launcher, join_processes, require_batches
    from ..engine.resume import choose_checkpoint

    prepare(cfg, args)
    choose_launcher(cfg, args.launcher)
    join_processes(cfg)
    cfg.work_dir = results = str(args.work_dir or cfg.get('work_dir') or Path('work_dirs', Path(cfg.filename).stem))
    if cfg.get('resume'):
        choose_checkpoint(cfg)
    cfg.log_level, cfg.visualizer = 'WARNING', None
    with tempfile.TemporaryDirectory() as cfg.work_dir:
        runner = build_runner(cfg, cfg.launcher)
        require_batches(runner)
        text = dry_run(runner)
    cfg.work_dir = results
    if runner.rank == 0:
        print(f'{summary(cfg, runner.world_size)}\n{text}\nDry run: nothing was written.', flush=True)
    leave_distributed()


@contextmanager
def live_progress(runner):
    """Where the first process writes to a terminal, the line of ShowProgress stands below its log."""
    from ..engine import ShowProgress

    if runner.rank or not sys.stdout.isatty():
        yield
        return
    hook = ShowProgress()
    runner.register_hook(hook)
    try:
        yield
    finally:
        hook.close()


def prepare(cfg, args):
    """Complete a config by the command line, and look at its data."""
    from ..datasets import check_data, read_images_alike
    from ..engine.launch import require_checkpoint

    apply_arguments(cfg, args)
    if cfg.get('load_from'):
        require_checkpoint(cfg.load_from)
    check_data(cfg, ('train', 'val'))
    read_images_alike(cfg)


def apply_arguments(cfg, args):
    """Write what the command line asks for into the config."""
    from ..utils.errors import ConfigError

    if not cfg.get('train_dataloader') or not cfg.get('optim_wrapper'):
        raise ConfigError(f'{args.config} describes no training: it has no train_dataloader or no optim_wrapper')
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.amp:
        if cfg.optim_wrapper.get('type', 'OptimWrapper') not in ('OptimWrapper', 'AmpOptimWrapper', 'mmcae.AmpOptimWrapper'):
            raise ConfigError(f'--amp: optim_wrapper.type={cfg.optim_wrapper.type!r} decides about precision itself')
        cfg.optim_wrapper.type = 'mmcae.AmpOptimWrapper'
    if args.resume is not None and not args.resume:
        raise ConfigError('--resume is given an empty name: name a checkpoint, or leave the name out for the newest')
    if args.resume:
        cfg.resume, cfg.load_from = True, None if args.resume == 'auto' else args.resume
    if args.auto_scale_lr:
        cfg.auto_scale_lr = dict(cfg.get('auto_scale_lr') or {}, enable=True)
    check_scaling(cfg)


def summary(cfg, processes):
    """One line: how many images each update sees, at which lr, and where the results go."""
    images = cfg.train_dataloader.get('batch_size', 1)
    accumulated = cfg.optim_wrapper.get('accumulative_counts', 1)
    batch = processes * images * accumulated
    rate = f', resumed from {cfg.load_from}' if cfg.get('resume') else learning_rate(cfg, batch)
    several = 'es' if processes > 1 else ''
    return (
        f'Effective batch size {batch} ({processes} process{several} x {images} images x {accumulated} accumulated){rate}; '
        f'results go to {cfg.work_dir}'
    )


def check_scaling(cfg):
    """Refuse to scale a learning rate of which the config does not tell for which batch it was chosen."""
    from ..utils.errors import ConfigError

    scaling = cfg.get('auto_scale_lr') or {}
    if scaling.get('enable') and not scaling.get('base_batch_size'):
        raise ConfigError('--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in the config: the batch its lr was chosen for')


def learning_rate(cfg, batch):
    """At which lr a training begins whose updates see so many images, as the end of a sentence; '' where the config names none."""
    lr = cfg.optim_wrapper.get('optimizer', {}).get('lr')
    scaling = cfg.get('auto_scale_lr') or {}
    base = scaling.get('base_batch_size')
    if lr is None:
        return ''
    if scaling.get('enable'):
        ratio = batch / base
        return f", lr {lr * ratio:g} (the config's {lr:g} x {ratio:g})"
    return f', lr {lr:g}' + (f' (chosen for a batch of {base}; --auto-scale-lr adapts it)' if base and base != batch else '')
