"""Errors that a person can act on, and the context manager by which every tool prints them as one line.

Whatever is wrong with what the user gave (a config, a checkpoint, a data folder, the environment) is raised as one of the classes below,
with a message that names the culprit and the remedy. Anything else is a bug of ours and keeps its stack trace.
"""

import difflib
import errno
import inspect
import os
import pickle
import re
import sys
from contextlib import contextmanager, suppress
from contextvars import ContextVar

REFUSED = 2  # the exit code of a tool that refuses its input, the same as argparse's


class InputError(ValueError):
    """Something the user gave cannot be used; the message names it and says what to do."""


class ConfigError(InputError):
    """A config file, or a change of it on the command line, that cannot work."""


class CheckpointError(InputError):
    """A checkpoint that is absent, damaged, of another model, or holds more than tensors and plain values."""


class DataError(InputError):
    """Images or annotations that are absent, damaged or do not fit together."""


class StorageError(DataError):
    """Storage or memory that fails, or permissions that are missing: it tells nothing about the content of the file that was asked for."""


class TrainingError(InputError):
    """A training that went wrong on its way, with data and settings that looked right."""


class DependencyError(ImportError):
    """A library that is missing or too old or too new; the message says what to install."""


def as_keyword(name, value=None):
    """An argument as Python and configs spell it: `num_heads=`, or `num_heads=12`."""
    return f'{name}={"" if value is None else repr(value)}'


_spelling = ContextVar('spelling', default=as_keyword)


def argument(name, value=None):
    """An argument of one of mmcae's functions as whoever reads the message can give it.

    Args:
        name (str): Such as 'num_heads'.
        value (optional): What it could be.

    Returns:
        str: `num_heads=`, or `num_heads=12`; while a command runs its option, `--num-heads 12`, see :func:`spelled_by`.
    """
    return _spelling.get()(name, value)


@contextmanager
def spelled_by(spelling):
    """Have :func:`argument` spelled by a function of the name and the value."""
    token = _spelling.set(spelling)
    try:
        yield
    finally:
        _spelling.reset(token)


def nearest(name, known, prefix='; did you mean '):
    """The end of an error message that names the most similar known names, or '' where there is none.

    Args:
        name (str): What was written.
        known (Iterable[str]): What could have been meant.
        prefix (str): What stands before the names.

    Returns:
        str: Such as "; did you mean 'backbone'?".
    """
    known = list(known)
    matches = [other for other in known if other.strip().casefold() == name.strip().casefold()]
    matches = matches or difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f'{prefix}{" or ".join(map(repr, matches))}?' if matches else ''


@contextmanager
def one_line_errors():
    """Turn the errors of this module, and what the libraries raise for the same reasons, into one line on stderr and exit code 2.

    With the environment variable MMCAE_TRACEBACK=1 the stack trace is left as it is, to find out where an error comes from. Where stdout
    and stderr go into one file, the error comes last there too, of whatever kind it is: stdout is written line by line from here on.
    """
    try:
        with stdout_before_stderr():
            yield
    except Exception as error:
        message = explain(error)
        if message is None or os.environ.get('MMCAE_TRACEBACK') == '1':
            raise
        rank = os.environ.get('RANK')
        with suppress(OSError):  # whoever read it has gone; the exit code still tells
            print(f'error{f" (rank {rank})" if rank else ""}: {" ".join(message.split())}', file=sys.stderr, flush=True)
        raise SystemExit(REFUSED) from None


@contextmanager
def stdout_before_stderr():
    """Keep the order of what goes to stdout and to stderr where both are one file or pipe.

    Python holds back what is printed to a file or pipe until 8 KiB have come together, unless PYTHONUNBUFFERED is set; stderr overtakes it
    then. So stdout is written at the end of each line, and a line without an end at the end of the context. Loggers need nothing, since
    Python's stream handlers write each record at once.
    """
    if hasattr(sys.stdout, 'reconfigure'):  # not of streams that a caller has put in its place
        sys.stdout.reconfigure(line_buffering=True)
    try:
        yield
    finally:
        with suppress(OSError, ValueError):  # whoever read it has gone; the error on its way is what matters
            sys.stdout.flush()


def explain(error):
    """What to tell the user about an error, or None if it has to be taken for a bug.

    Args:
        error (Exception): As caught, with its traceback.

    Returns:
        str | None: One or more lines.
    """
    if isinstance(error, InputError | DependencyError):
        return _message(error)
    if isinstance(error, ImportError):
        return _explain_missing_library(error)
    if isinstance(error, FileNotFoundError | FileExistsError | NotADirectoryError | IsADirectoryError | PermissionError):
        return f'{error.strerror}: {error.filename}' if error.filename else _message(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
        return f'{error.strerror}: {error.filename or "while writing"}'
    if isinstance(error, OSError | MemoryError):
        return _explain_failing_storage(error)
    if isinstance(error, pickle.UnpicklingError):
        return f'A checkpoint was refused, because it holds more than tensors and plain data: {error}'
    if isinstance(error, KeyError | RuntimeError):
        explained = _explain_unknown_type(error) or _explain_missing_type(error) or _explain_empty_folder(error)
        return explained or _explain_lost_process(error)
    if isinstance(error, TypeError | AssertionError):
        return _explain_refused_arguments(error) or _explain_unknown_optimizer(error)
    if isinstance(error, ValueError):
        if 'Expected more than 1 value per channel when training' in str(error):
            return f'A batch norm cannot train on one value per channel: set train_dataloader.batch_size to 2 or more ({error})'
        return _explain_empty_dataset(error) or _explain_refused_arguments(error)
    return None


def _without_worker(text):
    """The message alone of an error out of a data loading process, to which torch adds that process's whole trace."""
    if not re.match(r'Caught \w+ in DataLoader worker process', text):
        return text
    return text.rstrip().splitlines()[-1].split(': ', 1)[-1]


def _message(error):
    """The text of an error; without the stack trace that torch puts before it when it comes from a worker of a dataloader."""
    text, name = str(error), type(error).__name__
    return text.rsplit(f'{name}: ', 1)[-1] if text.startswith(f'Caught {name} in DataLoader worker') else text


def _explain_missing_library(error):
    """For a library that is missing, broken or does not fit the others; what is wrong is looked for only now, since that takes seconds."""
    from .. import compat

    name = (error.name or '').split('.')[0]
    if name == 'mmcae':
        return None
    try:
        compat.check_environment()
    except DependencyError as reason:
        return str(reason)
    if isinstance(error, ModuleNotFoundError) and name:
        return f'{error}, which something in the config or the command needs. Remedy: {compat.how_to_install(error.name)}'
    return f'{type(error).__name__}: {error}. A library is missing, or does not fit the others: python -m mmcae.commands.doctor'


def _explain_failing_storage(error):
    """For storage or memory that fails where nothing tries again. Without a file it is a connection to another process."""
    from .files import cause, may_pass, remedy

    name = getattr(error, 'filename', None)
    if not may_pass(error) or name is None and getattr(error, 'errno', errno.ENOMEM) not in (errno.ENOMEM, errno.EMFILE, errno.ENFILE):
        return None
    return f'{f"{name}: " if name else ""}{cause(error)}. {remedy(error, name or "")}'


def _explain_unknown_type(error):
    """For a `type='X'` that no registry knows; mmengine says so in two ways, the second for names with a scope."""
    text = str(error.args[0]) if error.args else ''
    match = re.match(r'(\S+) is not in the (?:\w+::)?[\w ]+ registry', text) or re.fullmatch(r'Failed to get (\S+)', text)
    if not match:
        return None
    from .. import compat
    from .type_names import asked_registry, types_instead

    library = match[1].partition('.')[0]
    if library in compat.LIBRARIES:
        try:
            compat.require(library)
        except DependencyError as reason:
            return f"The config asks for type '{match[1]}': {reason}"
    return f"No registry knows type '{match[1]}', which the config asks for{types_instead(match[1], asked_registry(error.__traceback__))}"


def _explain_lost_process(error):
    """For a process that this one waits for and that is gone: a loader worker, or another rank."""
    text = ' '.join(str(error).split())
    if re.match(r'DataLoader worker \(pid.*(exited unexpectedly|killed by signal)', text):
        return (
            f'{text.rstrip(". ")}. Most often the system killed it for want of memory: lower num_workers or batch_size, or ask for more '
            'memory (or more shared memory, /dev/shm, in a container). The checkpoints are intact: go on with --resume'
        )
    if type(error).__name__.startswith('Dist') or re.search(r'gloo|NCCL|[Cc]onnection (closed|reset)|Timed out waiting', text):
        return f'{_hint_on_communication(text)}. The checkpoints are intact: go on with --resume. The message was: {text}'
    return None


def _hint_on_communication(text):
    """What to do about an error of gloo or NCCL, most often that another process is gone."""
    if re.search(r'/dev/shm|shared memory segment', text):
        return 'NCCL has no room in /dev/shm: give the container more shared memory (docker run --shm-size=16g, or --ipc=host)'
    own = r'unhandled system error|unhandled cuda error|internal error|invalid usage|invalid argument|Duplicate GPU'
    if re.search(own, text) and not re.search(r'[Rr]emote (process|error)|ncclRemoteError|[Cc]onnection|[Tt]imed? ?out|peer', text):
        return 'NCCL has failed in this process, for the reason that the message gives (NCCL_DEBUG=INFO in the environment has it say more)'
    return 'Another process of this training has died, or has not answered for env_cfg.dist_cfg.timeout seconds; what it printed says why'


def _explain_missing_type(error):
    """For a part of a config that says what to change of something, where there is nothing to be changed."""
    match = re.match(r'`cfg` or `default_args` must contain the key "type", but got (.*)', str(error.args[0]) if error.args else '')
    if not match:
        return None
    return f'The config has a part without a `type`: {match[1]}. Give it one, or correct its name, if it is to change a part of _base_'


def _explain_empty_folder(error):
    """For mmpretrain's folders of images without an image."""
    match = re.match(r'Found 0 files in subfolders of: (.*)', str(error), re.DOTALL)
    return f'There is no image in {match[1]}: look at data_root and data_prefix of the data set' if match else None


def _explain_unknown_optimizer(error):
    """For an optimizer of an unknown type, which mmengine's constructor looks up and does not find."""
    frame = error.__traceback__
    while frame is not None and not hasattr(frame.tb_frame.f_locals.get('self'), 'optimizer_cfg'):
        frame = frame.tb_next
    if frame is None or 'None is not a callable object' not in str(error):
        return None
    name = frame.tb_frame.f_locals['self'].optimizer_cfg.get('type')
    from mmengine.registry import OPTIMIZERS

    from .type_names import types_instead

    return f"No registry knows type '{name}', which optim_wrapper.optimizer asks for{types_instead(str(name), OPTIMIZERS)}"


def _explain_refused_arguments(error):
    """For a `dict(type='X', ...)` in a config whose arguments X does not take, or refuses by an assertion."""
    frame = _innermost_build(error.__traceback__)
    if frame is None or not str(error):
        return None
    built = frame['obj_cls']
    unknown = re.search(r"got an unexpected keyword argument '(\w+)'", str(error))
    if unknown and unknown[1] in frame['args']:
        arguments = [name for name in inspect.signature(built).parameters if name not in ('self', 'args', 'kwargs')]
        return f"{built.__name__} has no argument '{unknown[1]}'{nearest(unknown[1], arguments)} (it has {', '.join(arguments)})"
    if isinstance(error, AssertionError | ValueError) or re.search(r'missing \d+ required (positional|keyword-only) argument', str(error)):
        return f'{built.__name__} refuses its arguments: {error}'
    return None


def _explain_empty_dataset(error):
    """For a data set that finds no image where the config says they are, which mmengine's BaseDataset cannot store."""
    frame = _innermost_build(error.__traceback__)
    if frame is None or 'need at least one array to concatenate' not in str(error):
        return None
    places = {name: frame['args'][name] for name in ('data_root', 'data_prefix', 'ann_file', 'img_suffix') if frame['args'].get(name)}
    return f'{frame["obj_cls"].__name__} found no image: look at {places}, and at the suffix of the files (img_suffix)'


def _innermost_build(traceback):
    """The local variables of mmengine's `build_from_cfg` that is nearest to the error, or None."""
    found = None
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_code.co_name == 'build_from_cfg' and 'obj_cls' in frame.f_locals:
            found = frame.f_locals
        traceback = traceback.tb_next
    return found
