"""One process for each folder: who holds it is named, and the dead hold nothing, with and without locks of the file system."""

import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import time

import pytest

from mmcae.utils import locks
from mmcae.utils.errors import DataError
from mmcae.utils.locks import locked


class Holder:
    """A process that holds a folder until it is killed."""

    def __init__(self, folder, host=None, then=None):
        reading, writing = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            try:
                if host:
                    socket.gethostname = lambda: host
                with locked(folder):
                    os.write(writing, b'held')
                    then and then()
                    time.sleep(60)
            finally:
                os._exit(1)
        assert os.read(reading, 4) == b'held'
        os.close(reading), os.close(writing)

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.pid = None


@pytest.fixture
def hold():
    """Start a process that holds a folder; returns it when it does."""
    started = []

    def start(*args, **kwargs):
        started.append(Holder(*args, **kwargs))
        return started[-1]

    yield start
    for process in started:
        if process.pid:
            process.kill()


@pytest.fixture(params=['flock', 'no flock'])
def system(request, monkeypatch):
    """A file system with locks, and one without."""
    monkeypatch.setattr(locks, 'SETTLING', 0.05)
    if request.param == 'no flock':
        monkeypatch.setattr(fcntl, 'flock', unsupported)


def unsupported(*_):
    raise OSError(errno.ENOLCK, 'No locks available')


@pytest.fixture
def log(monkeypatch):
    lines = []
    monkeypatch.setattr(locks, 'print_log', lambda line, *_: lines.append(line))
    return lines


def test_a_folder_is_held_by_one_process_and_free_after_it(tmp_path, hold, system, log):
    folder = tmp_path / 'run'
    process = hold(folder)
    message = rf'{folder} is in use by process {process.pid} of host {socket.gethostname()} \(since 20\d\d-.*rm {folder}/.lock'
    with pytest.raises(DataError, match=message), locked(folder):
        pass
    number = process.pid
    process.kill()
    for _ in range(2):
        with locked(folder), pytest.raises(DataError, match=f'process {os.getpid()} '), locked(folder):
            pass
    (line,) = log  # the dead one was succeeded, which is said once
    assert f'process {number} of' in line and f'succeeded by process {os.getpid()}' in line
    assert os.listdir(folder) == ['.lock'] and not (folder / '.lock').read_text()


def test_an_error_frees_the_folder(tmp_path, system):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), locked(tmp_path):
            raise ZeroDivisionError
    assert not (tmp_path / '.lock').read_text()


def test_children_do_not_keep_the_lock_of_a_killed_parent(tmp_path, hold):
    reading, writing = os.pipe()

    def fork():
        child = os.fork()
        os.write(writing, f'{child:08d}'.encode())
        time.sleep(60)

    process = hold(tmp_path, then=fork)
    workers = [int(os.read(reading, 8)) for _ in range(2)]  # the child says 0
    process.kill()
    try:
        with locked(tmp_path):
            pass
    finally:
        os.kill(max(workers), signal.SIGKILL)


def record(folder, **changes):
    """A lock file of another process; by default one that lives on another host."""
    folder.mkdir(exist_ok=True)
    path = folder / '.lock'
    path.touch()
    other = dict(host='elsewhere', boot='x', pid=4711, started='1', since='2025-01-02 03:04:05', job=None, file=path.stat().st_ino)
    path.write_text(json.dumps(other | changes))


def test_another_host_holds_it_until_somebody_frees_it(tmp_path, system):
    folder = tmp_path / "a 'run'"
    record(folder)
    with pytest.raises(DataError) as caught, locked(folder):
        pass
    assert 'in use by process 4711 of host elsewhere (since 2025-01-02 03:04:05)' in str(caught.value)
    subprocess.run(str(caught.value).rsplit('by: ')[-1], shell=True, check=True)
    with locked(folder):
        pass


def test_records_of_those_that_must_have_ended_do_not_count(tmp_path, monkeypatch, system):
    here = dict(host=socket.gethostname(), boot=locks.boot_id(), pid=os.getpid(), started=locks.starting_time(os.getpid()))
    monkeypatch.setenv('SLURM_JOB_ID', '12')
    monkeypatch.setenv('SLURM_RESTART_COUNT', '1')
    ended = [
        here | dict(boot='before the last start of the machine'),
        here | dict(started='0'),  # another process got its number
        dict(job=['12', 0]),  # Slurm has put the job into the queue again, and it runs on another host now
        dict(file=0),  # the folder is a copy
    ]
    for changes in ended:
        record(tmp_path, **changes)
        with locked(tmp_path):
            pass
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'cae')  # the machine of the first process was lost, and this is the first now
    record(tmp_path, run='cae')
    with locked(tmp_path):
        pass
    monkeypatch.setenv('TORCHELASTIC_RUN_ID', 'none')  # where nobody gave it a name
    for changes in (dict(job=['12', 1]), dict(job=['11', 0]), dict(run='cae'), dict(run='none'), dict(run=None)):
        record(tmp_path, **changes)
        with pytest.raises(DataError), locked(tmp_path):
            pass
    for text in ('', '{', '[]', '{"pid": 1}'):  # of nobody
        (tmp_path / '.lock').write_text(text)
        with locked(tmp_path):
            pass


def test_a_copy_of_a_folder_in_use_is_free(tmp_path, hold, system):
    process = hold(tmp_path / 'run')
    shutil.copytree(tmp_path / 'run', tmp_path / 'copy')
    with locked(tmp_path / 'copy'):
        pass
    with pytest.raises(DataError, match=f'process {process.pid} '), locked(tmp_path / 'run'):
        pass


def test_containers_of_one_machine(tmp_path, hold):
    """They have names and process numbers of their own, and share the machine's locks."""
    process = hold(tmp_path, host='container')
    with pytest.raises(DataError, match='of host container'), locked(tmp_path):
        pass
    process.kill()
    with locked(tmp_path):
        pass


def test_a_process_that_is_dead_and_not_yet_waited_for_has_ended():
    process = subprocess.Popen(['true'])
    while open(f'/proc/{process.pid}/stat').read().rsplit(')', 1)[1].split()[0] != 'Z':
        pass
    assert locks.starting_time(process.pid) is None and locks.starting_time(os.getpid())
    process.wait()
    assert locks.starting_time(process.pid) is None


def test_two_that_start_together_without_locks(tmp_path, monkeypatch):
    """Both find the folder free and write; the first one gives way."""
    monkeypatch.setattr(fcntl, 'flock', unsupported)
    monkeypatch.setattr(locks.time, 'sleep', lambda _: record(tmp_path))
    with pytest.raises(DataError, match='host elsewhere'), locked(tmp_path):
        pass
    assert json.loads((tmp_path / '.lock').read_text())['pid'] == 4711  # which keeps the folder
