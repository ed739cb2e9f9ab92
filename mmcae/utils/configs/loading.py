"""From a config file and `--cfg-options` to a checked config: what mmcae train, mmcae test and every other tool do first.

A mistake is refused here, by name and with the nearest right names, because the libraries mostly ignore what they do not know.
"""

import difflib
import logging
from importlib.util import find_spec
from pathlib import Path

from ... import compat
from ..errors import ConfigError, DependencyError, InputError, nearest
from ..packaged import find_config
from ..text_files import read_plainly
from .files import TOP_LEVEL, read_config_file
from .options import about_variable, apply_option, is_variable, parse_option, split_options
from .variables import Assignments

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
# What mmengine's visualization backends import when they are built, long after the models and the data.
LOGGERS = {
    'AimVisBackend': ('aim',),
    'ClearMLVisBackend': ('clearml',),
    'DVCLiveVisBackend': ('dvclive', 'pygit2'),
    'MLflowVisBackend': ('mlflow',),
    'NeptuneVisBackend': ('neptune',),
    'SwanlabVisBackend': ('swanlab',),
    'TensorboardVisBackend': ('tensorboard',),
    'WandbVisBackend': ('wandb',),
}


def load_config(path, options=()):
    """Read a config file, apply changes from the command line, and check that it can run.

    Args:
        path (str | Path): A config file (.py, .yaml, .json), or the name of a packaged one, see :func:`mmcae.utils.packaged.find_config`.
        options (Iterable[str]): Changes, as in `['data_root=/path', 'train_dataloader.batch_size=8', 'model.backbone.out_indices=[1,3]']`.
            Variables of the config files, such as data_root, are set first and everything that is made of them follows, see
            :mod:`mmcae.utils.configs.variables`; the rest changes what comes out.

    Returns:
        Config: With the defaults that the dataloaders need filled in.

    Raises:
        ConfigError: The file is absent or cannot be read, an option names nothing in it, or a value cannot work.
        DependencyError: The library it is written for is missing.
    """
    read_plainly()
    cfg = read_config(path)
    texts = split_options(options)
    variables = {key: parse_option(cfg, key, text) for key, text in texts.items() if is_variable(cfg, key)}
    if variables:
        assignments = Assignments(variables)
        old, cfg = cfg, read_config(path, assignments)
        for key in variables:
            if key.split('.')[0] not in assignments.found:
                raise ConfigError(about_variable(old, key))
    for key in [key for key in texts if key not in variables]:
        apply_option(cfg, key, parse_option(cfg, key, texts[key]))
    check_config(cfg)
    complete_dataloaders(cfg)
    return cfg


def read_config(path, assignments=None):
    """Read a config file.

    Args:
        path (str | Path): As for :func:`load_config`.
        assignments (Assignments, optional): New values of its variables.

    Returns:
        Config: As it stands in the file and its bases.

    Raises:
        ConfigError: It is absent or cannot be read.
    """
    path = find_config(path)
    try:
        return read_config_file(path, assignments)
    except InputError:
        raise
    except Exception as error:  # from mmengine's reader of configs with imports
        raise ConfigError(f'{path} cannot be read: {type(error).__name__}: {error}') from error


def check_config(cfg):
    """Refuse values that can be told to be wrong before anything is built.

    Args:
        cfg (Config): A whole config.

    Raises:
        ConfigError: No model, a misspelt name, an unknown scope, a batch size or a number of workers that cannot be.
        DependencyError: The library of its scope is missing, or that of a logger.
    """
    for name in set(cfg) - TOP_LEVEL:
        slips = difflib.get_close_matches(name, TOP_LEVEL - set(cfg), n=1, cutoff=0.92)
        if slips:
            raise ConfigError(f'{cfg.filename} sets {name!r}, which nothing reads; did you mean {slips[0]!r}?')
    if 'model' not in cfg:
        raise ConfigError(f'{cfg.filename} has no `model`: is it a part that other configs build on (configs/_base_)?')
    compat.check_environment()
    scope = cfg.get('default_scope', 'mmengine')
    scopes = {'mmengine', 'mmpretrain', 'mmdet', 'mmseg', 'mmcae'}
    if scope not in scopes:
        raise ConfigError(f'default_scope={scope!r} is none of {sorted(scopes)}{nearest(str(scope), scopes)}')
    if scope == 'mmpretrain':
        compat.import_mmpretrain()
    elif scope in compat.LIBRARIES:
        compat.require(scope)
    check_loggers(cfg)
    for name in LOADERS:
        _check_counts(cfg, name, batch_size=1, num_workers=0)
        _check_dataset(cfg, name)
    _check_counts(cfg, 'train_cfg', max_epochs=1, max_iters=1, val_interval=1)
    if {'type', 'by_epoch'} <= set(cfg.get('train_cfg') or ()):
        raise ConfigError(f'train_cfg.by_epoch: the loop {cfg.train_cfg.type} says already what is counted; leave by_epoch out')
    if cfg.get('randomness') and cfg.randomness.get('seed') is not None:
        _check_counts(cfg, 'randomness', seed=0)
    level = cfg.get('log_level', 'INFO')
    if not isinstance(level, str) or not isinstance(getattr(logging, level, None), int):
        raise ConfigError(f'log_level={level!r} is none of DEBUG, INFO, WARNING, ERROR and CRITICAL')


def check_loggers(cfg):
    """Refuse loggers whose packages are not installed, before anything is built.

    Args:
        cfg (Config): A whole config.

    Raises:
        DependencyError: Names the logger, and the command that installs its packages.
    """
    visualizer = cfg.get('visualizer')
    backends = (visualizer.get('vis_backends') or ()) if isinstance(visualizer, dict) else ()
    for backend in [backends] if isinstance(backends, dict) else backends:
        kind = backend.get('type') if isinstance(backend, dict) else None
        name = kind.split('.')[-1] if isinstance(kind, str) else getattr(kind, '__name__', '')
        missing = [package for package in LOGGERS.get(name, ()) if find_spec(package) is None]
        if missing:
            commands = ' && '.join(compat.how_to_install(package) for package in missing)
            raise DependencyError(f'{name} in visualizer.vis_backends needs {" and ".join(missing)}: {commands}')


def _check_dataset(cfg, name):
    dataset = (cfg.get(name) or {}).get('dataset', {})
    if not isinstance(dataset, dict):
        raise ConfigError(f'{name}.dataset={dataset!r}: expected a dict(type=...)')
    if dataset.get('pipeline', True) in ([], ()):
        raise ConfigError(f'{name}.dataset.pipeline is empty: nothing would be made of the images')


def _check_counts(cfg, name, **least):
    part = cfg.get(name) or {}
    if not isinstance(part, dict):
        raise ConfigError(f'{name}={part!r}: expected a dict')
    for key, lowest in least.items():
        value = part.get(key, lowest)
        if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
            raise ConfigError(f'{name}.{key}={value!r}: expected a whole number, at least {lowest}')


def complete_dataloaders(cfg):
    """Fill in what torch's DataLoader needs beyond what configs say.

    mmpretrain's configs leave the collation to its tools; memory is pinned where there is a GPU to copy it to; and without workers there
    are none to keep alive or to prefetch, which torch would otherwise refuse.

    Args:
        cfg (Config): Changed in place.
    """
    for name in LOADERS:
        loader = cfg.get(name)
        if not loader:
            continue
        if cfg.get('default_scope') == 'mmpretrain':
            loader.setdefault('collate_fn', dict(type='default_collate'))
        loader.setdefault('pin_memory', compat.has_accelerator())
        if loader.get('num_workers', 0) == 0:
            loader.pop('persistent_workers', None)
            loader.pop('prefetch_factor', None)
        else:
            loader.setdefault('persistent_workers', True)


def set_work_dir(cfg, path, config):
    """Decide where results go: the command line first, then the config, then work_dirs/NAME_OF_THE_CONFIG.

    Args:
        cfg (Config): Changed in place.
        path (str | None): From the command line.
        config (str): The config file's path.

    Raises:
        ConfigError: Nothing can be written there.
    """
    cfg.work_dir = str(Path(path or cfg.get('work_dir') or Path('work_dirs') / Path(config).stem).expanduser())
    probe = Path(cfg.work_dir) / '.writable'
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)  # another process may have been faster
    except OSError as error:
        raise ConfigError(f'Cannot write results to {cfg.work_dir}: {error.strerror}. Name another folder with --work-dir') from error


def last_checkpoint(cfg):
    """The name of the file that training by a config leaves at its end.

    Args:
        cfg (Config): Of a training.

    Returns:
        str: Such as 'iter_1600.pth'.
    """
    by_epoch = 'max_epochs' in cfg.train_cfg
    pattern = cfg.get('default_hooks', {}).get('checkpoint', {}).get('filename_tmpl', 'epoch_{}.pth' if by_epoch else 'iter_{}.pth')
    return pattern.format(cfg.train_cfg.max_epochs if by_epoch else cfg.train_cfg.max_iters)
