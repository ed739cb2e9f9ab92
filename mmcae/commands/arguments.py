"""Checks of what a tool's command line asks for, before anything slow begins: numbers, and places to write to."""

import argparse
import math
import os
from pathlib import Path

from ..utils.errors import ConfigError

PICTURES = ('.png', '.jpg', '.jpeg', '.webp', '.tif', '.tiff', '.pdf')
FIGURES = (*PICTURES, '.svg')


def add_changes(parser):
    """The arguments of a command that changes a config: `key=value` anywhere, or behind `--cfg-options` as OpenMMLab has it."""
    parser.add_argument('changes', nargs='*', default=[], metavar='KEY=VALUE', help='changes of the config')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='the same, as users of OpenMMLab write it')


def add_launcher(parser):
    """The argument of a command that may run as several processes."""
    parser.add_argument(
        '--launcher',
        choices=['auto', 'none', 'pytorch', 'slurm', 'mpi'],
        default='auto',
        help='what started the processes (default: by the environment)',
    )
    # What torch.distributed.launch, by which mim starts several processes, adds to a command; LOCAL_RANK in the environment says the same.
    parser.add_argument('--local-rank', '--local_rank', type=int, help=argparse.SUPPRESS)


def check_arguments(args, at_least=None, shares=(), outputs=None):
    """Refuse numbers that cannot be, and files that cannot be written.

    Args:
        args (argparse.Namespace): The options as they were parsed. Those that are None are left alone; of lists every item is checked.
        at_least (dict[str, int], optional): The lowest number by the name of the option.
        shares (Iterable[str]): Options that lie between 0 and 1, both excluded.
        outputs (dict[str, Iterable[str]], optional): What the name of a file to be written may end in, by option; nothing: anything.

    Raises:
        ConfigError: Names the option, its value, and what is expected.
    """
    for name, lowest in (at_least or {}).items():
        for value in values_of(args, name):
            if not value >= lowest or math.isinf(value):
                raise ConfigError(f'{option(name)} {value}: expected a number, at least {lowest}')
    for name in shares:
        for value in values_of(args, name):
            if not 0 < value < 1:
                raise ConfigError(f'{option(name)} {value}: expected a number between 0 and 1')
    for name, suffixes in (outputs or {}).items():
        for value in values_of(args, name):
            check_output(value, option(name), suffixes)


def values_of(args, name):
    """The values of an option: none, one or several."""
    value = getattr(args, name)
    if value is None:
        return ()
    return value if isinstance(value, list | tuple) else (value,)


def option(name):
    """What an option is called on the command line."""
    return f'--{name.replace("_", "-")}'


def check_output(path, name, suffixes=()):
    """Refuse a file that cannot be written; its folders need not exist.

    Args:
        path (str | Path): The file.
        name (str): The option, for messages.
        suffixes (Iterable[str]): What its name may end in; nothing: anything.

    Raises:
        ConfigError: It is a folder, its name ends in something else, or it lies below a file or in a folder that may not be written.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f'{name} {path} is a folder: name a file in it')
    if suffixes and path.suffix.lower() not in suffixes:
        raise ConfigError(f'{name} {path}: the name must end in {", ".join(suffixes)}')
    check_output_folder(path.absolute().parent, f'{name} {path}')
    if path.exists() and not os.access(path, os.W_OK):
        raise ConfigError(f'{name} {path} cannot be written: no permission')


def check_output_folder(path, name):
    """Refuse a folder in which nothing can be written; it need not exist.

    Args:
        path (str | Path): The folder.
        name (str): The option and its value, for messages.

    Raises:
        ConfigError: It is a file or lies below one, or may not be written.
    """
    folder = Path(path).absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise ConfigError(f'{name} cannot be written: {folder} is a file')
    if not os.access(folder, os.W_OK):
        raise ConfigError(f'{name} cannot be written: no permission in {folder}')


def named_encoders(encoders):
    """Encoders by name: `NAME=CHECKPOINT`, or a file, which is called by its folder and itself.

    Args:
        encoders (list[str]): As they were given.

    Returns:
        dict[str, str]: Checkpoints by name.

    Raises:
        ConfigError: Two have one name.
    """
    found = {}
    for text in encoders:
        name, equals, path = text.partition('=')
        if not equals or not name or Path(text).exists():
            name, path = '/'.join(Path(text).with_suffix('').parts[-2:]), text
        if name in found:
            raise ConfigError(f'Two encoders are called {name}: give them names, as in first={found[name]} second={path}')
        found[name] = path
    return found


def device_of(name):
    """The device that an option such as `--device` names.

    Args:
        name (str | None): Such as 'cpu' or 'cuda'; None: a GPU where there is one, else the CPU.

    Returns:
        torch.device: It is there.

    Raises:
        ConfigError: This machine has no such device.
    """
    import torch

    if name is None:
        name = 'cuda' if torch.cuda.is_available() else 'cpu'
    if name == 'cuda' and not torch.cuda.is_available():
        raise ConfigError('--device cuda: torch sees no GPU on this machine; use --device cpu')
    return torch.device(name)
