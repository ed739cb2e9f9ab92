"""Files that an address names, such as s3://bucket/folder or ftp://host/folder: read and listed by fsspec, whose packages know the stores.

Credentials, endpoints and timeouts are fsspec's: in the environment (FSSPEC_S3_ENDPOINT_URL=...) or in ~/.config/fsspec. A store that fails
raises an OSError (EIO), which :func:`mmcae.utils.files.patiently` takes for one that may pass; one that refuses, a StorageError.
"""

import asyncio
import errno
import os
import posixpath
import random
import re
import sys
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path
from types import ModuleType
from urllib.parse import quote, unquote_to_bytes
from weakref import WeakValueDictionary

from .errors import ConfigError, StorageError

STALLED = 30  # seconds without an answer, after which a request is given up and made again
GAP, BLOCK = 4096, 4 * 2**20  # bytes between two parts of a file that one request reads, and bytes that it reads at most then

GONE, FORBIDDEN, BUSY = (404, 410), (401, 403, 407), (408, 421, 423, 425, 429)  # HTTP's; aiohttp says 400 of an answer that it cannot read
NO_ACCESS = 'Credential|Authenticat|Unauthorized'  # in the names of stores' errors


def is_remote(path: str | Path) -> bool:
    """Whether a path is an address."""
    return '://' in str(path)


def is_web(path: str | Path) -> bool:
    """Whether a path is an address of a web server, in which names are quoted: a#1.png is a%231.png there."""
    return str(path).startswith(('http://', 'https://'))


def join(folder: str | Path, name: str) -> str | Path:
    """A path below a folder or an address, by the name that a file has on a disk."""
    if not is_remote(folder):
        return Path(folder) / name
    return f'{str(folder).rstrip("/")}/{quote(os.fsencode(name)) if is_web(folder) else name}'.rstrip('/')


class RemoteRoot:
    """Mixin of mmengine's BaseDataset, which joins paths to a `data_root` of the stores alone that mmengine knows itself."""

    def _join_prefix(self):
        if not is_remote(self.data_root):
            return super()._join_prefix()
        if self.ann_file and not is_remote(self.ann_file) and not self.ann_file.startswith('/'):
            self.ann_file = join(self.data_root, self.ann_file)
        self.data_prefix = {key: join(self.data_root, part) for key, part in self.data_prefix.items()}


def read(path: str, start: int | None = None, end: int | None = None) -> bytes:
    """The bytes of a file from `start` up to `end`, all by default.

    Raises:
        FileNotFoundError: It is not there.
        OSError: The store fails or does not answer.
        ConfigError: The package for this kind of store is missing.
        StorageError: The store refuses, for want of credentials or permissions, or cannot send a part of a file.
    """
    with _store(path) as (store, place):
        try:
            for request in _requests.get().get(path, ()):
                if request.covers(start, end):
                    return request.take(start, end)
            data = _ask(store, 'cat_file', place, start=start, end=end)
            check_length(path, data, start, end)
            return data
        except FileNotFoundError as error:  # which fsspec makes of any refusal of an FTP server
            store.invalidate_cache()
            if store.exists(place):
                raise OSError(errno.EIO, str(error.__cause__ or error)) from error
            raise


@contextmanager
def requested(parts: Iterable[tuple[str, int | None, int | None]]):
    """Request parts of files all at once; within the block :func:`read` takes them as they come, in any order and any number of times.

    Parts of a file that lie close together are one request. One that fails is made again by :func:`read`, which tells what is wrong. Stores
    that fsspec reads in one thread alone, such as FTP, are left to it altogether. How many requests are under way is up to the store: s3fs
    has 10 connections (`config_kwargs`, max_pool_connections), aiohttp 100.

    Args:
        parts: Path, start and end, as :func:`read` takes them.
    """
    requests = {}
    if parts := set(parts):
        from fsspec.utils import merge_offset_ranges

        ranges = map(list, zip(*parts, strict=True))
        for path, start, end in zip(*merge_offset_ranges(*ranges, GAP, BLOCK), strict=True):
            with suppress(OSError, ConfigError, StorageError), _store(path) as (store, place):
                if store.async_impl:
                    future = asyncio.run_coroutine_threadsafe(store._cat_file(place, start=start or None, end=end), store.loop)
                    requests.setdefault(path, []).append(Request(path, start or 0, end, future))
    token = _requests.set(requests)
    try:
        yield
    finally:
        _requests.reset(token)
        for request in (request for some in requests.values() for request in some):
            request.future.cancel()


@dataclass
class Request:
    """A part of a file that is under way, from `start` up to `end`; None is the end of the file."""

    path: str
    start: int
    end: int | None
    future: Future

    def covers(self, start: int | None, end: int | None) -> bool:
        """Whether a part lies in this one."""
        return self.start <= (start or 0) and (self.end is None or end is not None and end <= self.end)

    def take(self, start: int | None, end: int | None) -> bytes:
        """The bytes of a part of it. A request that fails is dropped, so that the next try makes another one."""
        try:
            data = self.future.result(STALLED)
            check_length(self.path, data, self.start, self.end)
        except BaseException:
            _requests.get()[self.path].remove(self)
            raise
        return data[(start or 0) - self.start : None if end is None else end - self.start]


_requests: ContextVar[dict[str, list[Request]]] = ContextVar('requests', default={})  # noqa: B039 - never written to


def check_length(path: str, data: bytes, start: int | None, end: int | None):
    """Refuse what is more than was asked for, and take less for a connection that has broken."""
    if end is None:
        return
    wanted = end - (start or 0)
    if len(data) > wanted:
        raise StorageError(f'{path}: its server sends the whole file where a part of it is asked for; shards need one that knows ranges')
    if len(data) < wanted:
        raise EOFError(f'{len(data):,} of {wanted:,} bytes have come')


def size(path: str) -> int | None:
    """Bytes of a file; None if it is not there. Raises as :func:`read` does."""
    try:
        with _store(path) as (store, place):
            return _ask(store, 'info', place)['size']
    except FileNotFoundError:
        return None


def exists(path: str) -> bool:
    """Whether there is a file or a folder. Raises as :func:`read` does."""
    try:
        with _store(path) as (store, place):
            _ask(store, 'info', place)
            return True
    except FileNotFoundError:
        return False


def find(folder: str) -> list[str]:
    """All files below a folder, relative to it; those of a folder before those of the folders in it, by name, as in a local folder."""
    with _store(folder) as (store, place):
        place = place.rstrip('/')
        plain = (lambda path: os.fsdecode(unquote_to_bytes(path))) if is_web(folder) else str
        names = [posixpath.relpath(f'/{plain(path)}', f'/{plain(place)}') for path in _below(store, place)]
    return sorted(names, key=lambda name: [(1, part) for part in name.split('/')[:-1]] + [(0, name.split('/')[-1])])


def _below(store, place):
    """All files below a folder. fsspec's own walk would leave out the folders that cannot be listed for now."""
    from fsspec import AbstractFileSystem
    from fsspec.asyn import AsyncFileSystem

    if (type(store)._find is not AsyncFileSystem._find) if store.async_impl else (type(store).find is not AbstractFileSystem.find):
        return store.find(place)  # a flat listing, in which nothing is walked
    files, folders = [], [place]
    for folder in folders:
        try:
            found = _ask(store, 'ls', folder, detail=True)
        except FileNotFoundError:
            if folder == place:
                raise
            continue
        for name, kind in ((info['name'].rstrip('/'), info['type']) for info in found):
            if kind == 'directory' and name not in folders:
                folders.append(name)
            elif kind == 'file' and name != folder:
                files.append(name)
    return files


def _ask(store, method, place, **settings):
    """The answer of a store, which may take `STALLED` seconds."""
    if not store.async_impl:
        return getattr(store, method)(place, **settings)
    from fsspec.asyn import sync

    return sync(store.loop, getattr(store, f'_{method}'), place, timeout=STALLED, **settings)


@contextmanager
def _store(path):
    """fsspec's file system for an address, and what it calls the path. Other errors than a missing file become an OSError (EIO)."""
    import fsspec

    try:
        store, place = (
            fsspec.core.url_to_fs(str(path), timeout=STALLED) if str(path).startswith('ftp') else fsspec.core.url_to_fs(str(path))
        )
    except (ImportError, ValueError) as error:
        known = '; among those that fsspec knows are s3, gs, abfs, http, https and ftp' if 'not known' in str(error) else ''
        raise ConfigError(f'{path} cannot be read: {error}{known}') from error
    except Exception as error:  # some connect already here
        raise _failure(path, error) from error
    if '?' in str(path) and str(path).startswith(('ftp', 'sftp')):  # which fsspec takes for the end of the path, as on a web server
        place = '/' + str(path).split('/', 3)[3].rstrip('/')
    if id(store) not in _opened:
        separate_random_numbers()
    _opened[id(store)] = store
    try:
        yield store, place
    except Exception as raised:  # every store has errors of its own
        error = _beneath(raised)
        status = getattr(error, 'status', None)
        if isinstance(error, StorageError):
            raise
        if isinstance(error, FileNotFoundError) or status in GONE:
            raise FileNotFoundError(errno.ENOENT, 'No such object', str(path)) from raised
        store.clear_instance_cache()  # the next try connects anew
        if isinstance(error, PermissionError) or status in FORBIDDEN or re.search(NO_ACCESS, type(error).__name__):
            raise StorageError(f'{path} cannot be read: {error}. Look at the credentials and permissions (docs/loading.md)') from raised
        if isinstance(status, int) and 400 < status < 500 and status not in BUSY:
            raise StorageError(f'{path} cannot be read: {error}. The server does not answer such requests: look at the address') from raised
        if isinstance(error, ValueError | IsADirectoryError | NotADirectoryError) and not isinstance(error, UnicodeError | JSONDecodeError):
            raise ConfigError(f'{path} cannot be read: {error}. Look at the address') from raised
        raise _failure(path, error) from raised


# A forked process, such as a loader's worker, has the connections of its parent's stores and shares its epoll instance. If it freed a
# store, fsspec would close the connections, and the parent would hear no answer any more. So it keeps what it has inherited.
_opened, _inherited = WeakValueDictionary(), []
os.register_at_fork(before=lambda: _inherited.extend(_opened.values()), after_in_parent=_inherited.clear)


# Packages that draw the waits before their own retries from Python's random numbers, in fsspec's thread.
DRAWING = ('adlfs', 'aiobotocore', 'aiohttp', 'azure', 'botocore', 'gcsfs', 'google', 's3fs', 'urllib3')
_numbers, _random = random.Random(), ModuleType('random')  # the module with numbers of its own
vars(_random).update(vars(random), **{name: getattr(_numbers, name) for name in random.__all__ if hasattr(_numbers, name)})
os.register_at_fork(after_in_child=_numbers.seed)


def separate_random_numbers():
    """Give such packages random numbers of their own: those of the process are seeded for each image, and must not depend on the store."""
    for name, module in list(sys.modules.items()):
        if name.partition('.')[0] in DRAWING and getattr(module, 'random', None) is random:
            module.random = _random
    if standard := sys.modules.get('botocore.retries.standard'):  # which took the function when it was imported
        wait = standard.ExponentialBackoff.__init__
        wait.__defaults__ = tuple(_random.random if value is random.random else value for value in wait.__defaults__)


def _beneath(error):
    """What made fsspec say that a file is not there: over HTTP that is whatever goes wrong in asking for its size."""
    cause = error.__cause__
    other = isinstance(cause, OSError | TimeoutError) or getattr(cause, 'status', None) is not None
    return cause if isinstance(error, FileNotFoundError) and other else error


def _failure(path, error):
    text = str(error) or f'no answer in {STALLED} s' * isinstance(error, TimeoutError | asyncio.TimeoutError)
    return OSError(errno.EIO, f'{type(error).__name__}: {text}', str(path))
