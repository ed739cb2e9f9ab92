"""Files that appear whole or not at all, and reading that outlasts a short failure of the storage.

`write_file` and `atomic_file` write, `read_file` and `patiently` read.
"""

import errno
import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from mmengine.logging import print_log

from . import remote
from .errors import ConfigError, StorageError
from .locks import flock, open_descriptor

Result = TypeVar('Result')

# ---------------------------------------------------------------- writing

HOST = re.sub(r'\W', '_', socket.gethostname())[:100]
UNFINISHED = re.compile(r'unfinished-(\w+)-\d+-[0-9a-f]{16}\.partial')
ABANDONED = 24 * 3600  # seconds without a change, after which nobody on another host writes a file any more


class UnfinishedFile:
    """A file beside its place, under a name that no other process chooses, until it is complete. See :func:`atomic_file`.

    Args:
        path: The name it will have; folders are made, and a link keeps leading to it.

    Attributes:
        name: Where it lies now.
        file: Binary, open for writing and reading.
    """

    def __init__(self, path: str | Path):
        self.path = Path(os.path.realpath(path))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.name, self.lock = None, ExitStack()
        with self.named_errors():
            while self.name is None or not self.name.exists():  # it was taken for abandoned before it was locked
                self.name = self.path.parent / f'unfinished-{HOST}-{os.getpid()}-{secrets.token_hex(8)}.partial'
                flock(self.lock.enter_context(open_descriptor(self.name)), wait=True)
            self.file = open(self.name, 'r+b')

    def finish(self):
        """Force the file onto the disk and give it its name."""
        with self.named_errors():
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
            os.replace(self.name, self.path)
            self.lock.close()
            sync_folder(self.path.parent)

    def discard(self):
        """Leave nothing of it."""
        with suppress(OSError):  # what cannot be written any more
            self.file.close()
        self.name.unlink(missing_ok=True)
        self.lock.close()

    @contextmanager
    def named_errors(self):
        """Errors name the file that is wanted, not the unfinished one."""
        try:
            yield
        except OSError as error:
            if error.errno and (error.filename is None or error.filename == str(self.name)):
                raise OSError(error.errno, error.strerror, str(self.path)) from error
            raise


@contextmanager
def atomic_file(path: str | Path):
    """Write a file that takes its name when it is complete and on the disk; when the block raises, nothing is left of it.

    Args:
        path: Its name; folders are made, and a link keeps leading to it.

    Yields:
        A binary file object, open for writing and reading. Its `name` is its present path, for whoever needs one.

    Raises:
        OSError: Such as a full disk; it names `path`. What was there before is unchanged then.
    """
    unfinished = UnfinishedFile(path)
    try:
        with unfinished.named_errors():
            yield unfinished.file
        unfinished.finish()
    except BaseException:
        unfinished.discard()
        raise


def write_file(path: str | Path, content: bytes | str):
    """Write a file by :func:`atomic_file`; text in UTF-8."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def sync_folder(folder: Path):
    """Force the names in a folder onto the disk, where the file system knows how to."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return  # a folder that may be written to, but not listed
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(descriptor)


def remove_unfinished(folder: str | Path):
    """Remove what processes that were killed have left of files in a folder, and nothing that is still being written.

    Files of this host are in work as long as they are locked; those of others, and all where there are no locks, as long as they change.
    """
    for path in Path(folder).glob('unfinished-*.partial'):
        match = UNFINISHED.fullmatch(path.name)
        if not match:
            continue
        with suppress(OSError):  # another process is removing it too
            descriptor = os.open(path, os.O_RDWR)
            try:
                free = flock(descriptor) if match[1] == HOST else None
                if free or free is None and time.time() - os.fstat(descriptor).st_mtime > ABANDONED:
                    path.unlink()
            finally:
                os.close(descriptor)


def cache_folder() -> Path:
    """Where mmcae keeps what it can make again: `$MMCAE_CACHE`, by default `~/.cache/mmcae`.

    Raises:
        RuntimeError: Neither is known, for a user without a home.
    """
    return Path(os.environ.get('MMCAE_CACHE') or Path.home() / '.cache' / 'mmcae').expanduser().absolute()


# ---------------------------------------------------------------- reading

# What a file server, a network, or a machine that is short of something answers, and does not answer a little later. Nothing of it tells
# about the file.
PASSING = {
    getattr(errno, name)
    for name in """
    EIO ESTALE ETIMEDOUT EAGAIN EINTR EBUSY EMFILE ENFILE ENOMEM ENOBUFS ENOLCK EDEADLK ECONNRESET ECONNABORTED ECONNREFUSED ENOTCONN
    ESHUTDOWN EPIPE ENETDOWN ENETUNREACH ENETRESET EHOSTDOWN EHOSTUNREACH EREMOTEIO ENOLINK ECOMM EPROTO ENODEV ENXIO ENODATA EKEYEXPIRED
    """.split()
    if hasattr(errno, name)
}
MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
LONGEST_WAIT = 10.0  # seconds between two tries


def patience() -> float:
    """Seconds for which a failing read is tried again: $MMCAE_RETRY_SECONDS, by default 60."""
    text = os.environ.get('MMCAE_RETRY_SECONDS', '60')
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f'MMCAE_RETRY_SECONDS={text!r} in the environment must be a number of seconds') from None


def may_pass(error: BaseException) -> bool:
    """Whether an error tells nothing about what was read, but that storage or memory has failed for now."""
    if isinstance(error, OSError):
        return error.errno in PASSING
    # torch and OpenCV have errors of their own.
    return isinstance(error, MemoryError) or re.search("can't allocate memory|Insufficient memory", str(error)) is not None


def patiently(action: Callable[[], Result], name: str | Path) -> Result:
    """Do something that reads, and do it again after growing waits while the storage or the memory fails in a way that may pass.

    Args:
        action: Can be repeated.
        name: What it reads, for messages.

    Returns:
        What the action does.

    Raises:
        StorageError: It has failed so for :func:`patience` seconds. Of a try that has failed, :data:`remote.STALLED` seconds count at most:
            what took longer is a process that was stopped meanwhile.
        Exception: Any other of the action's, at once.
    """
    waited, wait, told = 0.0, 0.05, False
    while True:
        began = time.monotonic()
        try:
            return action()
        except Exception as error:
            if not may_pass(error):
                raise
            waited += min(time.monotonic() - began, remote.STALLED)
            rest, what = patience() - waited, getattr(error, 'filename', None) or name
            if rest <= 0:
                raise StorageError(f'{what} cannot be read: {cause(error)}, for {waited:.0f} s. {remedy(error, what)}') from error
            if not told:
                print_log(f'{what}: {cause(error)}; trying again for {rest:.0f} s', 'current', logging.WARNING)
                told = True
        wait = min(wait, rest, LONGEST_WAIT)
        time.sleep(wait)
        waited, wait = waited + wait, 2 * wait


def read_file(path: str | Path) -> bytes:
    """The content of a file, local or of an address (:mod:`mmcae.utils.remote`).

    Raises:
        FileNotFoundError: It is not there.
        StorageError: It cannot be read for a reason that tells nothing about its content: a failing server or disk, also after tries for
            :func:`patience` seconds; no permission.
    """
    try:
        return patiently((lambda: remote.read(path)) if remote.is_remote(path) else Path(path).read_bytes, path)
    except OSError as error:
        if error.errno in MISSING:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
        raise StorageError(f'{path} cannot be read: {cause(error)}. Look at its permissions') from error


def is_unmounted(path: str | Path) -> bool:
    """Whether the nearest folder above a missing file is empty, as a file system that is not mounted any more leaves it behind."""
    if remote.is_remote(path) or os.path.lexists(path):
        return False  # a link that leads nowhere
    folder = next(folder for folder in Path(path).absolute().parents if folder.is_dir())
    return next(folder.iterdir(), None) is None


def cause(error: Exception) -> str:
    """What is wrong, with its name in the system."""
    if isinstance(error, OSError):
        return f'{error.strerror or os.strerror(error.errno)} ({errno.errorcode.get(error.errno, error.errno)})'
    return 'not enough memory'


def remedy(error: Exception, name: str | Path) -> str:
    """What a person can do about an error that did not pass, in reading something."""
    kind = error.errno if isinstance(error, OSError) else errno.ENOMEM
    if kind in (errno.EMFILE, errno.ENFILE):
        what = 'Allow more open files (ulimit -n), or lower num_workers'
    elif kind == errno.ENOMEM:
        what = 'Lower num_workers or the batch size, or get more memory'
    else:
        what = (
            'Look at the store, its address and the network' if remote.is_remote(name) else 'Look at the disk, the mount or the file server'
        )
    return f'{what}; the same command goes on from here (a training with --resume)'
