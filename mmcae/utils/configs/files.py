"""From a config file and its chain of `_base_` files to a Config, with OpenMMLab's rules and results.

mmengine reads configs in one piece that nothing can join in. These files are read here, step by step, by mmengine's own functions where
there is one for a step, because three things are missing there: variables can be set from outside (:mod:`mmcae.utils.configs.variables`),
YAML runs no code, and errors say where they happened. Configs that use `with read_base()` are left to mmengine.
"""

import ast
import builtins
import contextlib
import inspect
import keyword
import math
import os
import re
import sys
import uuid
import warnings
from collections.abc import Mapping
from pathlib import PurePath

from mmengine.config import Config, ConfigDict
from mmengine.config.lazy import LazyAttr, LazyObject
from mmengine.config.utils import RemoveAssignFromAST
from mmengine.runner import FlexibleRunner, Runner
from mmengine.utils import import_modules_from_strings

from ...compat import how_to_install
from ..errors import ConfigError, InputError
from ..packaged import packaged_base
from ..text_files import has_mark, parse_json, parse_yaml, read_text
from .variables import Assignments

BASE, DELETE, DEPRECATION = '_base_', '_delete_', '_deprecation_'
# What mmengine's runners take, what they and mmcv's tools look up in the config besides, and nothing else: other names at the top of a
# config file are variables of that file.
TOP_LEVEL = {name for runner in (Runner, FlexibleRunner) for name in inspect.signature(runner.__init__).parameters} - {'self', 'cfg'}
TOP_LEVEL |= {'runner_type', 'model_wrapper_cfg', 'sync_bn', 'find_unused_parameters', 'activation_checkpointing', 'efficient_conv_bn_eval'}
TOP_LEVEL |= {'compile', 'tta_model', 'tta_pipeline', 'custom_imports'}
# What a dumped config says of numbers that Python has no literals for.
BUILTINS = vars(builtins) | {'inf': math.inf, 'nan': math.nan}


def read_config_file(path, assignments=None):
    """Read a config file and its bases.

    Args:
        path (str | Path): The file (.py, .yaml, .yml, .json).
        assignments (Assignments, optional): New values of variables, which are set while the files are executed.

    Returns:
        Config: What `mmengine.Config.fromfile` gives, apart from what has no place in a config: helpers of the files, such as imported
        classes, are left out, and paths are texts.

    Raises:
        ConfigError: The file or a base of it cannot be read, or a setting is something that no config can hold.
        DataError: It is no text, no YAML, no JSON.
    """
    path = str(path)
    if is_lazy(path):
        return read_lazy(path)
    settings, text, environment = read_chain(os.path.abspath(os.path.expanduser(path)), assignments or Assignments({}))
    if settings.get('custom_imports'):
        import_custom_modules(settings['custom_imports'], path)
    return Config(settings, cfg_text=text, filename=path, env_variables=environment)


def is_lazy(path):
    """Whether a config file builds on others by `with read_base()`, or imports its types: a format that only mmengine itself can read."""
    if not path.endswith('.py'):
        return False
    with located(path):
        nodes = list(ast.walk(ast.parse(read_text(path), path)))
    if any(isinstance(node, ast.Assign) and is_name(node.targets[0], BASE) for node in nodes):
        return False
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += ['.' * node.level + (node.module or '') for node in nodes if isinstance(node, ast.ImportFrom)]
    # mmengine takes Python's own modules for others in a virtual environment.
    others = {module.split('.')[0] for module in modules} - sys.stdlib_module_names - {'mmengine'}
    calls = [item.context_expr for node in nodes if isinstance(node, ast.With) for item in node.items]
    return bool(others) or any(is_name(getattr(call, 'func', None), 'read_base') for call in calls)


def read_lazy(path):
    """A config in the format with imports, by mmengine; without the helpers of the file."""
    if has_mark(path):
        raise ConfigError(f'{path} begins with a byte order mark: save it as UTF-8 without one')
    with located(path):
        cfg = Config.fromfile(path, lazy_import=True)
    settings = {name: value for name, value in dict.items(cfg._cfg_dict) if name not in cfg._imported_names}
    kept = plain_settings(settings, path)
    for name in settings:
        if name in kept:
            cfg[name] = kept[name]
        else:
            dict.pop(cfg._cfg_dict, name)
    return cfg


@contextlib.contextmanager
def located(path):
    """Turn whatever goes wrong in a file into an error that names the file and the line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # a config is Python: anything can go wrong in it
        line, traceback = getattr(error, 'lineno', None), error.__traceback__
        while traceback is not None:
            if traceback.tb_frame.f_code.co_filename == path:
                line = traceback.tb_lineno
            traceback = traceback.tb_next
        reason = error.msg if isinstance(error, SyntaxError) else error
        if isinstance(error, RuntimeError) and not str(error):  # mmengine's, for a call of something imported
            reason = 'configs with read_base() or imported types cannot call what they import'
        where = f' (line {line})' if line else ''
        raise ConfigError(f'{path} cannot be read: {type(error).__name__}: {" ".join(str(reason).split())}{where}') from error


def read_chain(path, assignments, chain=()):
    """The settings of a file on top of those of its bases.

    Args:
        path (str): Absolute.
        assignments (Assignments): See :func:`read_config_file`.
        chain (tuple[str]): The files that build on this one.

    Returns:
        tuple[dict, str, dict]: Settings; the text of all files, bases first; the environment variables that were used.
    """
    if path in chain:
        raise ConfigError(f'{chain[-1]} builds on {path}, which builds on it: take it out of _base_')
    suffix = os.path.splitext(path)[1]
    if suffix not in ('.py', '.json', '.yaml', '.yml'):
        raise ConfigError(f'{path} cannot be read: configs are .py, .yaml, .yml or .json files')
    original = read_text(path)
    code, environment = fill_in(original, path)
    code, placeholders = hide_base_variables(code)
    with located(path):
        content = ast.parse(code, path) if suffix == '.py' else parse_data(code, path)

    bases, texts = ConfigDict(), []
    for base in base_files(content, path):
        with located(path):
            base, scope = Config._get_cfg_path(packaged_base(base), path)
        if not os.path.isfile(base):
            raise ConfigError(f'{path} builds on {base}, which does not exist: correct _base_')
        settings, text, used = read_chain(os.path.abspath(base), assignments, (*chain, path))
        if twice := settings.keys() & bases.keys():
            raise ConfigError(f'{path}: two of its _base_ files set {", ".join(sorted(twice))}; only one may')
        bases.update(Config._dict_to_config_dict(settings, scope))
        texts.append(text)
        environment |= used

    with located(path):
        settings = execute(content, path, bases, assignments) if suffix == '.py' else content
        settings = plain_settings(settings, path)
        if DEPRECATION in settings:
            about = settings.pop(DEPRECATION)
            warnings.warn(f'The config {path} is deprecated: {dict(about)}', DeprecationWarning, stacklevel=2)
        settings = Config._substitute_base_vars(settings, placeholders, bases)
        settings.pop(BASE, None)
        settings = Config._merge_a_into_b(settings, bases)
    return settings, '\n'.join([*texts, f'{path}\n{original}']), environment


def fill_in(code, path):
    """Replace `{{ fileDirname }}` and its like, and `{{$VARIABLE:default}}`; returns the code and the variables used."""
    folder, name = os.path.split(path)
    stem, suffix = os.path.splitext(name)
    for key, value in dict(fileDirname=folder, fileBasename=name, fileBasenameNoExtension=stem, fileExtname=suffix).items():
        code = re.sub(r'\{\{\s*' + key + r'\s*\}\}', lambda _, value=value: value.replace('\\', '/'), code)
    used = {}

    def from_environment(match):
        name, default = match.groups()
        if name in os.environ:
            used[name] = os.environ[name]
        if not used.get(name, default):
            raise ConfigError(f'{path} needs the environment variable {name}: set it, or write a default, {{{{${name}:DEFAULT}}}}')
        return used.get(name, default)

    return re.sub(r'\{\{[\'"]?\s*\$(\w+)\s*:\s*(\S*?)\s*[\'"]?\}\}', from_environment, code), used


def hide_base_variables(code):
    """Put a text in the place of each `{{_base_.x}}`; returns the code, and what each of these texts stands for."""
    placeholders = {}

    def hide(match):
        placeholder = f'_{match[1]}_{uuid.uuid4().hex[:6]}'
        placeholders[placeholder] = match[1]
        return f'"{placeholder}"'

    return re.sub(r'\{\{\s*_base_\.([\w.]+)\s*\}\}', hide, code), placeholders


def parse_data(code, path):
    """The settings in a YAML or JSON text."""
    content = (parse_json if path.endswith('.json') else parse_yaml)(code, path)
    if not isinstance(content, dict):
        raise ConfigError(f'{path} holds a {type(content).__name__}: a config is a dict of settings with their names')
    for name in content:
        if not isinstance(name, str) or not name.isidentifier():
            raise ConfigError(f'{path} sets {name!r}: names at the top of a config are made of letters, digits and _')
    return content


def base_files(content, path):
    """What `_base_` of a parsed file names."""
    if isinstance(content, dict):
        bases = content.get(BASE, [])
    else:
        values = [node.value for node in content.body if isinstance(node, ast.Assign) and is_name(node.targets[0], BASE)]
        with located(path):
            bases = eval(compile(ast.Expression(values[0]), path, 'eval'), {}) if values else []
    bases = bases if isinstance(bases, list | tuple) else [bases]
    for base in bases:
        if not isinstance(base, str):
            raise ConfigError(f'{path}: _base_ names files, and {base!r} is none')
    return bases


def is_name(node, name):
    """Whether a node of a syntax tree is this name."""
    return isinstance(node, ast.Name) and node.id == name


def execute(module, path, bases, assignments):
    """Run a config file; returns the names it sets."""
    module = assignments.rewrite(RemoveAssignFromAST(BASE).visit(module))
    names = {BASE: bases, '__builtins__': BUILTINS, '__file__': path, assignments.FUNCTION: assignments.apply}
    exec(compile(module, path, 'exec'), names)
    return {name: value for name, value in names.items() if name != BASE}


def plain_settings(settings, path):
    """Settings without the helpers of their file: imported modules, functions, classes, and objects under names that no library reads."""
    kept = {}
    for name, value in settings.items():
        if name.startswith('__') or inspect.ismodule(value) or inspect.isroutine(value) or inspect.isclass(value):
            continue
        try:
            kept[name] = plain(value, name, path)
        except ConfigError:
            if name in TOP_LEVEL:
                raise
    return kept


def plain(value, name, path):
    """A setting as a config can hold it: it is copied, written to the work dir, read again, and sent to other processes.

    Args:
        value: The setting.
        name (str): Its dotted name, for messages.
        path (str): The file, for messages.

    Returns:
        Any: The same; paths as texts.

    Raises:
        ConfigError: It is, or holds, another object than texts, numbers, lists, tuples, sets and dicts.
    """
    if isinstance(value, Mapping):
        check_keys(value, name, path)
        items = {plain(key, f'a key of {name}', path): plain(item, f'{name}.{key}', path) for key, item in dict.items(value)}
        return ConfigDict(items) if isinstance(value, ConfigDict) else items
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return kind(plain(item, f'{name}.{index}', path) for index, item in enumerate(value))
    for kind in (bool, int, float, str):  # also of what is derived from them, such as an enumeration or a number of NumPy's
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, PurePath):
        return str(value)
    if value is None or isinstance(value, bytes | complex | range | LazyAttr | LazyObject):
        return value
    kind = getattr(value, '__qualname__', None) or f'a {type(value).__name__}'
    raise ConfigError(
        f'{path}: {name} is {kind}, which cannot be written to a config file. Settings are texts, numbers, lists, tuples and dicts; write '
        'the name of a registered class or function as a text'
    )


def check_keys(node, name, path):
    """Refuse keys of a dict that mmengine writes to a config file as no Python can read them."""
    identifiers = all(str(key).isidentifier() for key in dict.keys(node))
    for key in dict.keys(node):
        text = str(key)
        if keyword.iskeyword(text) if identifiers else isinstance(key, str) and ("'" in text or '\\' in text or not text.isprintable()):
            raise ConfigError(f'{path}: {name} has the key {key!r}, which cannot be written to a config file: give it another name')


def import_custom_modules(wanted, path):
    """Import what `custom_imports` of a config names, before anything is looked up in a registry.

    Raises:
        ConfigError: There is no such module, or it cannot be imported.
    """
    try:
        import_modules_from_strings(**wanted)
    except (ImportError, TypeError) as error:
        cause = error.__context__ if isinstance(error.__context__, ImportError) else error
        package = f' ({how_to_install(cause.name)})' if isinstance(cause, ModuleNotFoundError) else ''
        raise ConfigError(
            f'{path}: custom_imports: {cause}. Install the package{package}, or put the folder of the module into PYTHONPATH'
        ) from error
