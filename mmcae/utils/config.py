"""From a config file and `--cfg-options` to a checked config: what tools/train.py, tools/test.py and every other tool do first.

A mistake is refused here, by name and with the nearest right names, because the libraries mostly ignore what they do not know.
"""

import difflib
import inspect
from argparse import Namespace
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.runner import FlexibleRunner, Runner

from .. import compat
from .config_variables import assigning
from .errors import ConfigError, InputError, nearest

# What mmengine's runners take, what they and mmcv's tools look up in the config besides, and nothing else: other names at the top of a
# config file are variables of that file.
TOP_LEVEL = {name for runner in (Runner, FlexibleRunner) for name in inspect.signature(runner.__init__).parameters} - {'self', 'cfg'}
TOP_LEVEL |= {'runner_type', 'model_wrapper_cfg', 'sync_bn', 'find_unused_parameters', 'activation_checkpointing', 'efficient_conv_bn_eval'}
TOP_LEVEL |= {'compile', 'tta_model', 'tta_pipeline'}
# Parts of a config that mmengine reads by name, ignoring every other name.
CLOSED = {
    'auto_scale_lr': {'enable', 'base_batch_size'},
    'env_cfg': {'cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit'},
    'env_cfg.mp_cfg': {'mp_start_method', 'opencv_num_threads'},
    'randomness': set(inspect.signature(Runner.set_randomness).parameters) - {'self'},
}
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def load_config(path, options=()):
    """Read a config file, apply changes from the command line, and check that it can run.

    Args:
        path (str | Path): A config file (.py, .yaml, .json).
        options (Iterable[str]): Changes, as in `['data_root=/path', 'train_dataloader.batch_size=8', 'model.backbone.out_indices=[1,3]']`.
            Variables of the config files, such as data_root, are set first and everything that is made of them follows, see
            :mod:`mmcae.utils.config_variables`; the rest changes what comes out.

    Returns:
        Config: With the defaults that the dataloaders need filled in.

    Raises:
        ConfigError: The file is absent or cannot be read, an option names nothing in it, or a value cannot work.
        DependencyError: The library it is written for is missing.
    """
    cfg = read_config(path)
    changes = parse_options(options)
    variables = {key: changes.pop(key) for key in list(changes) if is_variable(cfg, key)}
    if variables:
        check_options(cfg, variables)
        with assigning(variables) as assignments:
            cfg = read_config(path)
        for key in variables:
            if key.split('.')[0] not in assignments.found:
                raise ConfigError(_about_variable(cfg, key))
    check_options(cfg, changes)
    cfg.merge_from_dict(changes)
    check_config(cfg)
    complete_dataloaders(cfg)
    return cfg


def is_variable(cfg, key):
    """Whether a key names a variable of the config files: a name at their top that no library reads.

    Args:
        cfg (Config): As read.
        key (str): Dotted key.

    Returns:
        bool: False also for names that are nowhere.
    """
    name = key.split('.')[0]
    return name in cfg and name not in TOP_LEVEL


def read_config(path):
    """Read a config file.

    Args:
        path (str | Path): The file.

    Returns:
        Config: As it stands in the file and its bases.

    Raises:
        ConfigError: It is absent or cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f'There is no config {path}: it is a folder, name a file in it')
    if not path.is_file():
        raise ConfigError(f'There is no config {path}{nearest_config(path)}')
    try:
        return Config.fromfile(path)
    except InputError:
        raise
    except Exception as error:  # a config is Python: anything can go wrong in it
        raise ConfigError(f'{path} cannot be read: {type(error).__name__}: {error}') from error


def nearest_config(path):
    """The end of a message about a config that does not exist: the most similar ones, here and in mmcae's own configs/.

    Args:
        path (Path): What was asked for.

    Returns:
        str: Such as "; did you mean 'configs/cae/x.py'?", or ''.
    """
    own = Path(__file__).resolve().parents[2] / 'configs'
    folders = [Path('configs') if Path('configs').is_dir() else own, path.parent]
    found = {file.stem: str(file) for folder in folders if folder.is_dir() for file in folder.glob('**/*.py')}
    matches = difflib.get_close_matches(path.stem, found, n=3)
    return f'; did you mean {" or ".join(repr(found[match]) for match in matches)}?' if matches else ''


def parse_options(options):
    """Turn `['a.b=1', 'c=[2,3]']` into `{'a.b': 1, 'c': [2, 3]}` by mmengine's rules.

    Args:
        options (Iterable[str]): As written on the command line.

    Returns:
        dict[str, Any]: Values by dotted key.

    Raises:
        ConfigError: One of them is not of the form key=value.
    """
    parsed = Namespace(options={})
    for option in options or ():
        if '=' not in option:
            raise ConfigError(f'--cfg-options takes key=value, got {option!r}')
        key, value = option.split('=', 1)
        if ' ' in value and value[0] not in '[(':
            parsed.options[key] = value  # mmengine drops blanks, also those in the name of a folder
            continue
        one = Namespace(options={})
        DictAction(['--cfg-options'], 'options', nargs='+')(None, one, [option])
        parsed.options.update(one.options)
    return parsed.options


def check_options(cfg, options):
    """Refuse changes that would have no effect or cannot be meant.

    A new argument of something with a `type` is left to that class to accept or refuse when it is built.

    Args:
        cfg (Config): What is to be changed.
        options (dict[str, Any]): Values by dotted key.

    Raises:
        ConfigError: With the key, and what it could have meant.
    """
    for key, value in options.items():
        parts = key.split('.')
        node, exists = cfg._cfg_dict, True  # from the first new name on, `node` is an empty dict
        for depth, part in enumerate(parts):
            parent = '.'.join(parts[:depth])
            if isinstance(node, dict):
                if part not in node:
                    _check_new_key(cfg, node, part, parent, key)
                    exists = False
                node = node.get(part, {})
            elif isinstance(node, list | tuple):
                if not part.isdigit() or int(part) >= len(node):
                    raise ConfigError(f"--cfg-options {key}: '{parent}' is a list of {len(node)}; '{part}' is no number below that")
                node = node[int(part)]
            else:
                raise ConfigError(f"--cfg-options {key}: '{parent}' is {node!r} and has no parts")
        if exists:
            _check_kind(key, node, value)


def _check_new_key(cfg, node, part, parent, key):
    known = CLOSED.get(parent) if parent else TOP_LEVEL
    if known:
        if part not in known:
            candidates = known | set(node) if parent else TOP_LEVEL | set(cfg)
            raise ConfigError(f"--cfg-options {key}: '{part}' names nothing in the config{nearest(part, candidates)}")
    elif 'type' not in node and parent.split('.')[-1] != 'custom_keys':
        # Such a dict may take new names; one that is almost like a name in it is a slip.
        slips = difflib.get_close_matches(part, list(node), n=1, cutoff=0.85)
        if slips:
            raise ConfigError(f"--cfg-options {key}: '{parent}' has no '{part}'; did you mean {slips[0]!r}?")


def _about_variable(cfg, key):
    """For a variable that cannot be set: of a file that is not executed (YAML, JSON), or is executed in another way (read_base)."""
    variable, _, rest = key.partition('.')
    places = []

    def search(node, path):
        if type(node) is type(cfg[variable]) and node == cfg[variable]:
            places.append(path + (f'.{rest}' if rest else ''))
        elif isinstance(node, dict):
            for name, child in node.items():
                search(child, f'{path}.{name}')
        elif isinstance(node, list | tuple):
            for index, child in enumerate(node):
                search(child, f'{path}.{index}')

    for name in sorted(TOP_LEVEL & set(cfg)):
        search(cfg[name], name)
    instead = f'; set instead: {" ".join(places[:6])}' if places else ''
    return f"--cfg-options {key}: '{variable}' is a variable that is not set in a Python file with _base_{instead}"


def _check_kind(key, old, new):
    number = isinstance(old, int | float) and not isinstance(old, bool)
    if number and isinstance(new, str):
        raise ConfigError(f'--cfg-options {key}={new}: expected a number, as {old!r} now')
    if isinstance(old, bool) and not isinstance(new, bool):
        raise ConfigError(f'--cfg-options {key}={new}: expected True or False')
    if isinstance(old, dict) and isinstance(new, str | int | float):
        raise ConfigError(f'--cfg-options {key}={new}: it has parts ({", ".join(map(str, old))}); set one of them')


def check_config(cfg):
    """Refuse values that can be told to be wrong before anything is built.

    Args:
        cfg (Config): A whole config.

    Raises:
        ConfigError: No model, a misspelt name, an unknown scope, a batch size or a number of workers that cannot be.
        DependencyError: The library of its scope is missing.
    """
    for name in set(cfg) - TOP_LEVEL:
        slips = difflib.get_close_matches(name, TOP_LEVEL - set(cfg), n=1, cutoff=0.92)
        if slips:
            raise ConfigError(f'{cfg.filename} sets {name!r}, which nothing reads; did you mean {slips[0]!r}?')
    if 'model' not in cfg:
        raise ConfigError(f'{cfg.filename} has no `model`: is it a part that other configs build on (configs/_base_)?')
    scope = cfg.get('default_scope', 'mmengine')
    scopes = {'mmengine', 'mmpretrain', 'mmdet', 'mmseg', 'mmcae'}
    if scope not in scopes:
        raise ConfigError(f'default_scope={scope!r} is none of {sorted(scopes)}{nearest(scope, scopes)}')
    if scope == 'mmpretrain':
        compat.import_mmpretrain()
    elif scope in compat.LIBRARIES:
        compat.require(scope)
    for name in LOADERS:
        _check_counts(cfg, name, batch_size=1, num_workers=0)
    _check_counts(cfg, 'train_cfg', max_epochs=1, max_iters=1, val_interval=1)


def _check_counts(cfg, name, **least):
    part = cfg.get(name) or {}
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
    cfg.work_dir = str(path or cfg.get('work_dir') or Path('work_dirs') / Path(config).stem)
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
