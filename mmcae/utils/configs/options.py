"""`--cfg-options key=value`: find what a key names in a config, refuse what names nothing, and put the value in its place."""

import difflib
import inspect

from mmengine.config import ConfigDict
from mmengine.runner import Runner

from ..errors import ConfigError, nearest
from .files import DELETE, TOP_LEVEL
from .values import MISSING, accepted_types, convert
from .variables import replaced

# Parts of a config that mmengine reads by name, ignoring every other name.
CLOSED = {
    'auto_scale_lr': {'enable', 'base_batch_size'},
    'env_cfg': {'cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit', 'float32_matmul_precision'},
    'env_cfg.mp_cfg': {'mp_start_method', 'opencv_num_threads'},
    'randomness': set(inspect.signature(Runner.set_randomness).parameters) - {'self'},
}


def split_options(options):
    """Turn `['a.b=1', 'c=x=y']` into `{'a.b': '1', 'c': 'x=y'}`.

    Args:
        options (Iterable[str] | None): As written on the command line.

    Returns:
        dict[str, str]: Texts by dotted key. Of a key that is given twice the last counts.

    Raises:
        ConfigError: One of them is not of the form key=value.
    """
    texts = {}
    for option in options or ():
        key, equals, text = option.partition('=')
        if not equals or not all(key.split('.')):
            raise ConfigError(f'--cfg-options takes key=value, got {option!r}')
        texts.pop(key, None)
        texts[key] = text
    # What empties a dict comes before what fills it.
    return dict(sorted(texts.items(), key=lambda option: not option[0].endswith(f'.{DELETE}')))


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


def parse_option(cfg, key, text):
    """The value of one option.

    Args:
        cfg (Config): What is to be changed.
        key (str): Dotted key.
        text (str): What stands on the right of it.

    Returns:
        Any: The value; see :mod:`mmcae.utils.configs.values`.

    Raises:
        ConfigError: The key names nothing, or the value cannot be meant.
    """
    node, old = find(cfg, key)

    def accepted():
        if is_variable(cfg, key) or not isinstance(node, dict):
            return set()
        return accepted_types(node if '.' in key else None, key.split('.')[-1], cfg.get('default_scope'))

    try:
        return convert(text, old, accepted)
    except ConfigError as error:
        raise ConfigError(f'--cfg-options {key}={text}: {error}') from error


def apply_option(cfg, key, value):
    """Change one setting of a config.

    Args:
        cfg (Config): Changed in place; its parts are replaced, not changed.
        key (str): Dotted key, checked by :func:`parse_option`.
        value (Any): Its new value. A dict changes those parts of an old dict that it names; with `_delete_=True` it replaces it.

    Raises:
        ConfigError: A dict has parts of parts of something that has none.
    """
    name = key.split('.')[0]
    try:
        cfg[name] = replaced(ConfigDict({name: cfg[name]} if name in cfg else {}), key.split('.'), value, key)[name]
    except TypeError as error:  # of mmengine's merging
        raise ConfigError(f'--cfg-options {key}={value}: {error}') from error


def find(cfg, key):
    """What a key names in a config.

    A new argument of something with a `type` is left to that class to accept or refuse when it is built.

    Args:
        cfg (Config): What is to be changed.
        key (str): Dotted key.

    Returns:
        tuple: The dict or list that holds it, empty if that is new, too; and its value, MISSING for a new name.

    Raises:
        ConfigError: It names nothing; with what it could have meant.
    """
    parts = key.split('.')
    node, parent = None, cfg._cfg_dict
    for depth, part in enumerate(parts):
        above = '.'.join(parts[:depth])
        parent = {} if node is MISSING else node if depth else parent
        if isinstance(parent, dict):
            if part not in parent and part != DELETE:
                check_new_key(cfg, parent, part, above, key)
            node = parent.get(part, MISSING)
        elif isinstance(parent, list | tuple):
            if not part.isdigit() or int(part) >= len(parent):
                raise ConfigError(f"--cfg-options {key}: '{above}' is a list of {len(parent)}; '{part}' is no number below that")
            node = parent[int(part)]
        else:
            raise ConfigError(f"--cfg-options {key}: '{above}' is {parent!r} and has no parts")
    return parent, node


def check_new_key(cfg, node, part, parent, key):
    """Refuse a new name where only some have a meaning, or where it is almost like one that is there."""
    known = CLOSED.get(parent) if parent else TOP_LEVEL
    if known:
        if part not in known:
            candidates = known | set(node) if parent else TOP_LEVEL | set(cfg)
            raise ConfigError(f"--cfg-options {key}: '{part}' names nothing in the config{nearest(part, candidates)}")
    elif 'type' not in node and parent.split('.')[-1] != 'custom_keys':
        # Such a dict may take new names; one that is almost like a name in it is a slip.
        slips = difflib.get_close_matches(part, list(map(str, node)), n=1, cutoff=0.85)
        if slips:
            raise ConfigError(f"--cfg-options {key}: '{parent}' has no '{part}'; did you mean {slips[0]!r}?")


def about_variable(cfg, key):
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
