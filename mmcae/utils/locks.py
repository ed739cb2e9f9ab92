"""Folders that one process alone may write to, by a lock that ends with its process.

The `filelock` package does not tell who holds a lock and since when, and on file systems without flock never takes over one whose process
is dead.
"""

import fcntl
import json
import os
import shlex
import socket
import time
from contextlib import contextmanager
from pathlib import Path

from mmengine.logging import print_log

from .errors import DataError

LOCK = '.lock'
SETTLING = 1.0  # seconds: without locks of the system, what two processes write within this time decides between them

_descriptors: set[int] = set()


def _close_in_child():
    """A process that is forked while a lock is held, such as a loader worker, would keep it when its parent is killed."""
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()


os.register_at_fork(after_in_child=_close_in_child)


@contextmanager
def locked(folder: str | Path):
    """Hold a folder for this process alone.

    The file `.lock` in it names the holder, and is empty when there is none. The system's lock on that file (flock) ends with the process,
    so a process that was killed holds nothing. On a file system without flock the record decides: the holder is dead if its host has no
    such process any more, or was started again. Processes of other hosts cannot be looked at, so their records count until the file is
    removed; except for an earlier start of the same Slurm job or torchrun, which has ended, and a record that was copied along with its
    folder.

    Args:
        folder: Is made if it does not exist.

    Raises:
        DataError: Another process holds it. The message names the folder, the holder, and how to free it.
        OSError: The file cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open_descriptor(folder / LOCK) as descriptor:
        take(descriptor, folder)
        try:
            yield
        finally:
            write_record(descriptor, None)


def take(descriptor: int, folder: Path):
    """Lock the open lock file of a folder and write into it who holds it; a DataError if another process does."""
    free = flock(descriptor)
    holder = read_record(descriptor)
    if free is False or (holder and not has_ended(holder, descriptor, free)):
        raise DataError(refusal(folder, holder))
    if holder:
        print_log(f'{folder}: {described(holder)} has ended without freeing it, and is succeeded by process {os.getpid()}', 'current')
    own = own_record(descriptor)
    write_record(descriptor, own)
    if free is None:
        time.sleep(SETTLING)
        holder = read_record(descriptor)
        if holder != own:
            raise DataError(refusal(folder, holder))


@contextmanager
def open_descriptor(path: Path):
    """Open a file for locking; forked processes do not keep it open."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    _descriptors.add(descriptor)
    try:
        yield descriptor
    finally:
        _descriptors.discard(descriptor)
        os.close(descriptor)


def flock(descriptor: int, wait: bool = False) -> bool | None:
    """Lock an open file, until it is closed.

    Returns:
        True: it is locked now. False: another process has it. None: this file system has no such locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        return True
    except BlockingIOError:
        return False
    except OSError:
        return None


# ---------------------------------------------------------------- who holds it


def own_record(descriptor: int) -> dict:
    """Who this process is, for the lock file."""
    return dict(
        host=socket.gethostname(),
        boot=boot_id(),
        pid=os.getpid(),
        started=starting_time(os.getpid()),
        since=time.strftime('%Y-%m-%d %H:%M:%S'),
        job=slurm_job(),
        run=torchrun_run(),
        file=os.fstat(descriptor).st_ino,
    )


def read_record(descriptor: int) -> dict | None:
    """Who holds the lock; None where nothing (or nothing of ours) is written."""
    try:
        record = json.loads(os.pread(descriptor, 10_000, 0))
        return dict(run=None) | record if record.keys() >= own_record(descriptor).keys() - {'run'} else None  # earlier versions lack it
    except (ValueError, AttributeError):
        return None


def write_record(descriptor: int, record: dict | None):
    """Write who holds the lock; None for nobody."""
    os.ftruncate(descriptor, 0)
    if record:
        os.pwrite(descriptor, json.dumps(record).encode() + b'\n', 0)
        os.fsync(descriptor)


def has_ended(holder: dict, descriptor: int, free: bool | None) -> bool:
    """Whether a recorded holder is dead.

    Args:
        holder: The record.
        descriptor: The open lock file.
        free: What :func:`flock` said: True, or None where only the record tells.
    """
    if holder['file'] != os.fstat(descriptor).st_ino:
        return True  # written for another folder, of which this one is a copy
    here = own_record(descriptor)
    same_host, same_boot = holder['host'] == here['host'], holder['boot'] == here['boot']
    if free and (same_host or same_boot and here['boot']):  # containers of one machine have names and process numbers of their own
        return True
    if same_host:
        return not same_boot or starting_time(holder['pid']) != holder['started']
    return restarted(holder['job'], here['job']) or holder['run'] is not None and holder['run'] == here['run']


def boot_id() -> str:
    """What one start of a machine has to itself; containers share it with their host."""
    try:
        return Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    except OSError:
        return ''


def starting_time(pid: int) -> str | None:
    """When a process of this machine was started, in the system's own units; None if there is no such process, or it is only unburied."""
    try:
        fields = Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()
    except OSError:
        return None
    return None if fields[0] in 'ZX' else fields[19]


def slurm_job() -> list | None:
    """Number of the Slurm job, and how often it was started again."""
    job = os.environ.get('SLURM_JOB_ID')
    return [job, int(os.environ.get('SLURM_RESTART_COUNT') or 0)] if job else None


def torchrun_run() -> str | None:
    """Name of the run among whose machines torchrun chooses the first anew when one is lost; None where it has no name of its own.

    torchrun starts processes when those of the start before have ended, or their machine has not answered for a while.
    """
    name = os.environ.get('TORCHELASTIC_RUN_ID')
    return None if name == 'none' else name


def restarted(earlier: list | None, job: list | None) -> bool:
    """Whether a process belongs to an earlier start of a Slurm job; Slurm has ended that before the next."""
    return bool(earlier and job) and earlier[0] == job[0] and earlier[1] < job[1]


def described(holder: dict | None) -> str:
    """A holder in words."""
    return f'process {holder["pid"]} of host {holder["host"]} (since {holder["since"]})' if holder else 'another process'


def refusal(folder: Path, holder: dict | None) -> str:
    """What to tell a process that cannot have the folder."""
    free = f'If that process has ended all the same, free the folder by: rm {shlex.quote(str(folder / LOCK))}'
    return f'{folder} is in use by {described(holder)}: wait until it ends, or name another folder. {free}'
