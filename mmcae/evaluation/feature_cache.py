"""Features that are computed once and kept in mmcae's cache folder, never in a user's data."""

import hashlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
from mmengine.logging import print_log

from ..utils.errors import DataError
from ..utils.files import atomic_file, cache_folder, remove_unfinished, write_file
from ..utils.locks import flock, open_descriptor

UNUSED = 90 * 24 * 3600.0  # seconds after which features or results that nobody asked for are removed
VERSION = 2  # another one where the same key would mean other numbers


def key_of(content: Mapping) -> str:
    """A name for what numbers were computed from: plain data, told apart by every value in it."""
    return hashlib.blake2b(canonical(content).encode(), digest_size=16).hexdigest()


def canonical(content: Mapping) -> str:
    """The same text for the same content."""
    return json.dumps(dict(content, version=VERSION), sort_keys=True, ensure_ascii=False)


def kept_features(
    content: Mapping,
    shape: tuple[int, ...],
    dtype: str,
    compute: Callable[[], Iterable[np.ndarray]],
    folder: str | Path | None = None,
    in_memory: bool = True,
) -> np.ndarray | None:
    """Features from the cache, or computed and put there.

    Args:
        content: What they depend on, as plain data: the encoder's spec and weights, the data's fingerprint, the view.
        shape: Of all of them, (N, ...).
        dtype: Such as 'float16'.
        compute: Gives them, part by part, if they are not there.
        folder: Where they are kept. Defaults to `$MMCAE_CACHE/features`. Where it cannot be written, or has no room (they would take more
            than half of what is free), they are not kept there, and the log says so.
        in_memory: What is not kept there is computed into memory.

    Returns:
        An array (N, ...), mapped into memory from the file; not to be written to. None where they are not kept anywhere.

    Raises:
        DataError: The file is damaged, or holds features of another encoder, of other data, or of another view.
    """
    key = key_of(content)
    with ExitStack() as stack:
        try:
            folder = Path(folder) if folder else cache_folder() / 'features'
            folder.mkdir(parents=True, exist_ok=True)
            flock(stack.enter_context(open_descriptor(folder / f'{key}.lock')), wait=True)
            array, about = folder / f'{key}.npy', folder / f'{key}.json'
            if about.exists():
                found = read(array, about, content, shape, dtype)
                with suppress(OSError):
                    os.utime(about)
                return found
            clear(folder)
            check_room(folder, math.prod(shape) * np.dtype(dtype).itemsize)
        except (OSError, RuntimeError) as error:
            warn_of_cache(error, in_memory)
            return filled(np.empty(shape, dtype), compute()) if in_memory else None
        with atomic_file(array) as file:
            target = np.lib.format.open_memmap(file.name, 'w+', dtype, shape)
            filled(target, compute()).flush()
        write_file(about, canonical(content))  # last, since it says that the features are there
        return np.load(array, mmap_mode='r')


def filled(target: np.ndarray, parts: Iterable[np.ndarray]) -> np.ndarray:
    """An array with rows part by part."""
    done = 0
    for part in parts:
        target[done : done + len(part)] = part
        done += len(part)
    if done != len(target):
        raise DataError(f'Features of {done} images were computed, and {len(target)} were expected')
    return target


def read(array: Path, about: Path, content: Mapping, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Features out of a file of the cache, if they are what its name promises."""
    remedy = f'Remove {array} and {about.name}; they are computed again'
    try:
        stored = json.loads(about.read_text(encoding='utf-8'))
        found = np.load(array, mmap_mode='r', allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f'{array} is damaged ({error}). {remedy}') from error
    wanted = json.loads(canonical(content))
    if stored != wanted:
        differing = [name for name in wanted if not isinstance(stored, dict) or stored.get(name) != wanted[name]]
        names = {'encoder': 'another encoder', 'weights': 'an encoder of other weights', 'data': 'other images', 'view': 'another view'}
        what = next((names[name] for name in differing if name in names), 'something else')
        raise DataError(f'{array} holds features of {what}. {remedy}')
    if found.shape != shape or found.dtype != np.dtype(dtype):
        raise DataError(f'{array} holds {found.dtype} of shape {found.shape} instead of {dtype} of shape {shape}. {remedy}')
    return found


def kept_result(content: Mapping, compute: Callable[[], list | dict], folder: str | Path | None = None) -> list | dict:
    """A small result, as plain data, from the cache (`$MMCAE_CACHE/results`), or computed and put there."""
    key = key_of(content)
    try:
        folder = Path(folder) if folder else cache_folder() / 'results'
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f'{key}.json'
        with suppress(OSError, ValueError):
            stored = json.loads(path.read_text(encoding='utf-8'))
            if stored['content'] == json.loads(canonical(content)):
                os.utime(path)
                return stored['result']
    except (OSError, RuntimeError):
        folder = None
    result = compute()
    if folder is not None:
        with suppress(OSError):
            clear(folder)
            write_file(path, json.dumps(dict(content=json.loads(canonical(content)), result=result), ensure_ascii=False))
    return result


def check_room(folder: Path, size: int):
    """Leave half of the free space to others.

    Raises:
        OSError: Less than twice so many bytes are free.
    """
    free = shutil.disk_usage(folder).free
    if 2 * size > free:
        raise OSError(f'they take {size / 1e9:,.1f} GB, and {folder} has {free / 1e9:,.1f} GB free')


def warn_of_cache(error: Exception, in_memory: bool):
    """Say that features cannot be kept."""
    where = 'kept in memory only' if in_memory else 'computed anew by each probe'
    print_log(
        f'Features are {where} ({error}): name a folder with room that can be written in the environment variable MMCAE_CACHE',
        'current',
        logging.WARNING,
    )


def clear(folder: Path):
    """Remove what nobody has asked for in a long time, and what killed processes have left."""
    remove_unfinished(folder)
    for about in folder.glob('*.json'):
        with suppress(OSError):
            if time.time() - about.stat().st_mtime > UNUSED:
                about.unlink()
                about.with_suffix('.npy').unlink(missing_ok=True)
