"""Text files of users: UTF-8 with or without a byte order mark, any line ends; JSON, YAML and lists are read as data, never as code."""

import codecs
import contextlib
import io
import json
import os
import pickle
import re
import tempfile
from pathlib import Path

import yaml
from mmengine.fileio import LocalBackend, register_backend, register_handler
from mmengine.fileio import io as mmengine_io
from mmengine.fileio.handlers import PickleHandler, YamlHandler

from .errors import DataError
from .files import patiently, read_file

OTHER_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # UTF-32 begins with one of them, too


def read_bytes(path):
    """The content of a text file without the byte order mark that some Windows programs put before it.

    Args:
        path (str | Path): The file.

    Returns:
        bytes: Names of files in it need not be UTF-8.

    Raises:
        DataError: It cannot be opened, or is UTF-16.
    """
    try:
        content = read_file(path)
    except FileNotFoundError as error:
        raise DataError(f'{path} cannot be read: {error.strerror}') from error
    if content.startswith(OTHER_MARKS):
        raise DataError(f'{path} is encoded in UTF-16 or UTF-32: save it as UTF-8')
    return content.removeprefix(codecs.BOM_UTF8)


def read_text(path):
    r"""The content of a text file, with '\n' at the end of each line.

    Args:
        path (str | Path): The file, in UTF-8, with or without a byte order mark.

    Returns:
        str: Its content.

    Raises:
        DataError: It cannot be opened, or is not UTF-8.
    """
    try:
        text = read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise DataError(f'{path} is no text in UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8') from error
    return io.StringIO(text, newline=None).read()


def read_json(path):
    """The content of a JSON file.

    Args:
        path (str | Path): The file.

    Returns:
        Any: As `json.loads` gives it.

    Raises:
        DataError: It cannot be opened, or is no JSON.
    """
    return parse_json(read_text(path), path)


def parse_json(text, name):
    """The content of a JSON text; `name` is what messages call it."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f'{name} is no JSON: {error}') from error


class PlainLoader(getattr(yaml, 'CSafeLoader', yaml.SafeLoader)):
    """PyYAML's safe loader, which also takes 1e-3 for a number, as YAML 1.2 does."""


PlainLoader.add_implicit_resolver('tag:yaml.org,2002:float', re.compile(r'[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$'), list('-+.0123456789'))


def read_yaml(path):
    """The content of a YAML file.

    Args:
        path (str | Path): The file.

    Returns:
        Any: Texts, numbers, lists and dicts.

    Raises:
        DataError: It cannot be opened, is no YAML, or has a tag such as `!!python/object/apply`, which asks a loader to run code.
    """
    return parse_yaml(read_text(path), path)


def parse_yaml(text, name):
    """The content of a YAML text; `name` is what messages call it."""
    try:
        return yaml.load(text, PlainLoader)
    except yaml.constructor.ConstructorError as error:
        tag = re.search(r"tag '([^']*)'", str(error.problem))
        if not tag:
            raise DataError(f'{name}, {_line(error)}: {error.problem}') from error
        tag = tag[1].replace('tag:yaml.org,2002:', '!!')
        raise DataError(
            f'{name}, {_line(error)}: the tag {tag} was refused. Loading a file runs no code: texts, numbers, lists and dicts are read'
        ) from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist
        problem = getattr(error, 'problem', None)
        raise DataError(f'{name} is no YAML: ' + (f'{problem} ({_line(error)})' if problem else str(error))) from error


def _line(error):
    mark = error.problem_mark or error.context_mark
    return f'line {mark.line + 1}' if mark else 'at its end'


# ---------------------------------------------------------------- what the libraries read


class PlainBackend(LocalBackend):
    """mmengine's LocalBackend, which outlasts short failures, reads text without a byte order mark, and lists no hidden folders.

    Folders such as `.ipynb_checkpoints` would be classes of data sets whose folders are classes.
    """

    SUFFIXES = ('.csv', '.json', '.txt', '.yaml', '.yml')

    def get(self, filepath):
        """The content of a file; see :func:`~mmcae.utils.files.read_file`."""
        return read_file(filepath)

    def list_dir_or_file(self, dir_path, *args, **kwargs):
        """Names in a folder, relative to it, as mmengine's, without what is hidden or lies in a hidden folder."""
        names = patiently(lambda: list(super(PlainBackend, self).list_dir_or_file(dir_path, *args, **kwargs)), dir_path)
        return (name for name in names if not any(part.startswith('.') for part in name.split(os.sep)))

    def get_text(self, filepath, encoding='utf-8'):
        """The content of a text file."""
        return read_text(filepath) if encoding == 'utf-8' else super().get_text(filepath, encoding)

    @contextlib.contextmanager
    def get_local_path(self, filepath):
        """The path itself; of a text file with a byte order mark a copy without it, while the context lasts."""
        if not (str(filepath).endswith(self.SUFFIXES) and has_mark(filepath)):
            yield filepath
            return
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / Path(filepath).name
            copy.write_bytes(read_bytes(filepath))
            yield str(copy)


def has_mark(path):
    """Whether a file begins with the byte order mark of UTF-8."""
    with contextlib.suppress(OSError), open(path, 'rb') as file:
        return file.read(3) == codecs.BOM_UTF8
    return False


class PlainYamlHandler(YamlHandler):
    """mmengine's handler of YAML files, which runs no code from them."""

    def load_from_fileobj(self, file, **kwargs):
        """The content of an open YAML file; see :func:`parse_yaml`."""
        return parse_yaml(file.read(), 'The YAML file')

    def dump_to_fileobj(self, obj, file, **kwargs):
        """Write data so that `load_from_fileobj` reads it."""
        yaml.dump(obj, file, **dict(kwargs, Dumper=yaml.SafeDumper))

    def dump_to_str(self, obj, **kwargs):
        """The same as a text."""
        return yaml.dump(obj, **dict(kwargs, Dumper=yaml.SafeDumper))


class PlainPickleHandler(PickleHandler):
    """mmengine's handler of pickles, which runs no code from them."""

    def load_from_fileobj(self, file, **kwargs):
        """The content of an open pickle; see :func:`read_pickle`."""
        return unpickle(file, 'The pickle')


class PlainUnpickler(pickle.Unpickler):
    """Builds texts, numbers, lists, dicts and tuples: what a pickle can hold without naming a class or a function."""

    def find_class(self, module, name):
        """Refuse whatever the file names."""
        raise pickle.UnpicklingError(f'it holds {module}.{name}')


def unpickle(file, name):
    """The content of an open pickle; `name` is what messages call it."""
    try:
        return PlainUnpickler(file).load()
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(
            f'{name} was refused ({error or type(error).__name__}): of pickles only texts, numbers, lists and dicts are read, because '
            'everything else can run code. Save it as JSON'
        ) from error


def read_pickle(path):
    """The content of a pickle of plain data.

    Args:
        path (str | Path): The file.

    Returns:
        Any: Texts, numbers, lists, tuples and dicts.

    Raises:
        DataError: It cannot be opened, is damaged, or names a class or a function; arrays are such, too.
    """
    try:
        with open(path, 'rb') as file:
            return unpickle(file, path)
    except OSError as error:
        raise DataError(f'{path} cannot be read: {error.strerror}') from error


def read_plainly():
    """Have mmengine's file functions, by which all OpenMMLab libraries read lists and annotations, read them as this module does.

    Byte order marks are skipped, YAML and pickles run no code, hidden folders are no classes, and what fails for a moment is tried again.
    The registries for it are mmengine's own; they belong to the process.
    """
    register_backend('local', PlainBackend, force=True, prefixes='')
    mmengine_io.backend_instances.clear()  # of the one that was registered before
    register_handler(['yaml', 'yml'])(PlainYamlHandler)
    register_handler(['pkl', 'pickle'])(PlainPickleHandler)
