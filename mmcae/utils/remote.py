"""Files that an address names, such as s3://bucket/folder or ftp://host/folder: read and listed by fsspec, whose packages know the stores.

Credentials, endpoints and timeouts are fsspec's: in the environment (FSSPEC_S3_ENDPOINT_URL=...) or in ~/.config/fsspec. A store that fails
raises an OSError (EIO), which :func:`mmcae.utils.files.patiently` takes for one that may pass; one that refuses, a StorageError.
"""

import errno
import posixpath
import re
from contextlib import contextmanager
from pathlib import Path

from .errors import ConfigError, StorageError

STALLED = 30  # seconds without an answer, after which a request is given up and made again


def is_remote(path: str | Path) -> bool:
    """Whether a path is an address."""
    return '://' in str(path)


def join(folder: str | Path, name: str) -> str | Path:
    """A path below a folder or an address."""
    return f'{str(folder).rstrip("/")}/{name}'.rstrip('/') if is_remote(folder) else Path(folder) / name


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
            if store.async_impl:
                from fsspec.asyn import sync

                data = sync(store.loop, store._cat_file, place, start=start, end=end, timeout=STALLED)
            else:
                data = store.cat_file(place, start=start, end=end)
            if end is not None and len(data) > end - (start or 0):
                raise StorageError(
                    f'{path}: its server sends the whole file where a part of it is asked for; shards need one that knows ranges'
                )
            return data
        except FileNotFoundError as error:  # which fsspec makes of any refusal of an FTP server
            store.invalidate_cache()
            if store.exists(place):
                raise OSError(errno.EIO, str(error.__cause__ or error)) from error
            raise


def size(path: str) -> int | None:
    """Bytes of a file; None if it is not there. Raises as :func:`read` does."""
    try:
        with _store(path) as (store, place):
            return store.info(place)['size']
    except FileNotFoundError:
        return None


def exists(path: str) -> bool:
    """Whether there is a file or a folder. Raises as :func:`read` does."""
    try:
        with _store(path) as (store, place):
            store.info(place)
            return True
    except FileNotFoundError:
        return False


def find(folder: str) -> list[str]:
    """All files below a folder, relative to it; those of a folder before those of the folders in it, by name, as in a local folder."""
    with _store(folder) as (store, place):
        place = place.rstrip('/')
        names = [posixpath.relpath(f'/{path}', f'/{place}') for path in store.find(place)]
    return sorted(names, key=lambda name: [(1, part) for part in name.split('/')[:-1]] + [(0, name.split('/')[-1])])


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
    try:
        yield store, place
    except Exception as error:  # every store has errors of its own
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(errno.ENOENT, 'No such object', str(path)) from error
        if isinstance(error, StorageError):
            raise
        store.clear_instance_cache()  # the next try connects anew
        if isinstance(error, PermissionError) or re.search('Credential|Authenticat|Unauthorized', type(error).__name__):
            raise StorageError(f'{path} cannot be read: {error}. Look at the credentials and permissions (docs/loading.md)') from error
        raise _failure(path, error) from error


def _failure(path, error):
    return OSError(errno.EIO, f'{type(error).__name__}: {error}', str(path))
