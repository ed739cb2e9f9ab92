"""Files that appear whole or not at all; reads that outlast a short failure, and tell a failing storage from a bad file."""

import errno
import os
import signal
import stat
import time

import cv2
import numpy as np
import pytest
import torch
from mmengine.fileio import get_file_backend

from mmcae.checkpoints.saving import ATOMIC
from mmcae.utils import files
from mmcae.utils.errors import ConfigError, StorageError
from mmcae.utils.files import atomic_file, is_unmounted, patiently, read_file, remove_unfinished, write_file
from mmcae.utils.locks import flock

BACKEND = dict(backend=ATOMIC)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setenv('MMCAE_RETRY_SECONDS', '0.2')


# ---------------------------------------------------------------- writing


def test_files_are_written_with_their_folders_and_replaced(tmp_path):
    backend, path = get_file_backend(str(tmp_path), backend_args=BACKEND), tmp_path / 'a' / 'b' / 'x.pth'
    for content in (b'first', b''):
        backend.put(content, str(path))
        assert path.read_bytes() == content and os.listdir(path.parent) == ['x.pth']
    backend.put_text('käse', path)
    assert path.read_text(encoding='utf-8') == 'käse'
    before = os.umask(0o027)
    try:
        write_file(tmp_path / 'own', 'x')
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / 'own').stat().st_mode) == 0o640  # as open() makes it


def test_a_failure_leaves_the_old_file_and_names_it(tmp_path, monkeypatch):
    """At any of the steps; a real full disk is in tests/test_faults/test_storage.py."""
    backend, path = get_file_backend(str(tmp_path), backend_args=BACKEND), tmp_path / 'x.pth'
    backend.put(b'old', path)

    def fail(*_):
        raise OSError(errno.EIO, 'Input/output error')

    for module, name in ((os, 'fsync'), (os, 'replace')):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fail)
            with pytest.raises(OSError, match='Input/output error') as caught:
                backend.put(b'new', path)
        assert caught.value.filename == str(path)
        assert path.read_bytes() == b'old' and os.listdir(tmp_path) == ['x.pth']
    with pytest.raises(ZeroDivisionError), atomic_file(path) as file:
        file.write(b'half')
        raise ZeroDivisionError
    with pytest.raises(FileNotFoundError) as caught, atomic_file(path) as file:
        open(tmp_path / 'another file')
    assert caught.value.filename == str(tmp_path / 'another file')
    assert path.read_bytes() == b'old' and os.listdir(tmp_path) == ['x.pth']


def test_libraries_write_by_the_object_or_by_its_name(tmp_path):
    array, tensors = np.arange(12.0), dict(a=torch.arange(3))
    with atomic_file(tmp_path / 'x.npz') as file:
        np.savez(file, array=array)
    with atomic_file(tmp_path / 'x.pth') as file:
        torch.save(tensors, file)
    with atomic_file(tmp_path / 'x.npy') as file:
        np.lib.format.open_memmap(file.name, 'w+', np.float64, (12,))[:] = array
        assert not (tmp_path / 'x.npy').exists()
    assert np.array_equal(np.load(tmp_path / 'x.npz')['array'], array) and np.array_equal(np.load(tmp_path / 'x.npy'), array)
    assert torch.equal(torch.load(tmp_path / 'x.pth', weights_only=True)['a'], tensors['a'])
    assert sorted(os.listdir(tmp_path)) == ['x.npy', 'x.npz', 'x.pth']


def test_a_link_keeps_leading_to_the_file(tmp_path):
    (tmp_path / 'other disk').mkdir()
    (tmp_path / 'link').symlink_to(tmp_path / 'other disk/real')
    write_file(tmp_path / 'link', 'x')
    assert (tmp_path / 'link').is_symlink() and os.listdir(tmp_path / 'other disk') == ['real']


def forked(action):
    """Run something in a process of its own; returns its number."""
    child = os.fork()
    if child:
        return child
    try:
        action()
        os._exit(0)
    finally:
        os._exit(1)


def test_writers_at_the_same_time_do_not_disturb_each_other(tmp_path):
    """Two processes write one name over and over, and a reader finds what one of them wrote whole, whoever sweeps beside them."""

    def write(letter):
        for _ in range(100):
            write_file(tmp_path / 'x', letter * 200_000)

    writers = [forked(lambda letter=letter: write(letter)) for letter in 'ab']
    codes = []
    while len(codes) < 2:
        remove_unfinished(tmp_path)
        if (tmp_path / 'x').exists():
            content = (tmp_path / 'x').read_text()
            assert len(content) == 200_000 and len(set(content)) == 1
        ended = [os.waitpid(writer, os.WNOHANG) for writer in writers]
        codes += [code for writer, code in ended if writer]
        writers = [writer for writer in writers if writer not in dict(ended)]
    assert codes == [0, 0]
    assert os.listdir(tmp_path) == ['x']


def test_what_a_killed_writer_left_is_removed_and_what_is_in_work_is_not(tmp_path):
    reading, writing = os.pipe()

    def write(name):
        with atomic_file(tmp_path / name):
            os.write(writing, b'.')
            time.sleep(60)

    killed, working = (forked(lambda name=name: write(name)) for name in 'xy')
    assert os.read(reading, 1) + os.read(reading, 1) == b'..'
    try:
        os.kill(killed, signal.SIGKILL)
        os.waitpid(killed, 0)
        assert len(os.listdir(tmp_path)) == 2
        remove_unfinished(tmp_path)
        (left,) = os.listdir(tmp_path)
        assert f'-{working}-' in left
    finally:
        os.kill(working, signal.SIGKILL)
        os.waitpid(working, 0)
    (tmp_path / 'notes.partial').touch()  # nobody knows whose
    other = tmp_path / 'unfinished-elsewhere-7-0123456789abcdef.partial'
    other.touch()
    remove_unfinished(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ['notes.partial', other.name]
    os.utime(other, (1e9, 1e9))  # nobody on the other host has written to it for years
    remove_unfinished(tmp_path)
    assert os.listdir(tmp_path) == ['notes.partial']


def test_a_writer_whose_file_was_taken_for_abandoned_takes_another(tmp_path, monkeypatch):
    """Between its making and its locking."""
    taken = []

    def take(descriptor, wait=False):
        if not taken:
            taken.append(os.listdir(tmp_path))
            (tmp_path / taken[0][0]).unlink()
        return flock(descriptor, wait)

    monkeypatch.setattr(files, 'flock', take)
    write_file(tmp_path / 'x', 'content')
    assert os.listdir(tmp_path) == ['x'] and (tmp_path / 'x').read_text() == 'content' and taken


def test_without_locks_unfinished_files_count_as_long_as_they_change(tmp_path, monkeypatch):
    monkeypatch.setattr(files, 'flock', lambda *_, **__: None)
    with atomic_file(tmp_path / 'x') as file:
        remove_unfinished(tmp_path)
        assert os.path.exists(file.name)
        os.utime(file.name, (1e9, 1e9))
        remove_unfinished(tmp_path)
        assert not os.path.exists(file.name)
        write_file(file.name, '')


# ---------------------------------------------------------------- reading


@pytest.fixture
def clock(monkeypatch):
    """The time in seconds, which passes by sleeping alone."""
    now = [0.0]
    monkeypatch.setattr('time.monotonic', lambda: now[0])
    monkeypatch.setattr('time.sleep', lambda seconds: now.__setitem__(0, now[0] + seconds))
    return now


def failing(times, error, then=b'data'):
    """Something that fails so many times."""
    calls = []

    def action():
        calls.append(1)
        if len(calls) <= times:
            raise error
        return then

    return action, calls


CODES = ['ESTALE', 'EIO', 'ETIMEDOUT', 'EMFILE', 'ENFILE', 'ENOMEM', 'EAGAIN', 'ECONNRESET', 'EHOSTDOWN']


@pytest.mark.parametrize('code', [*CODES, 'no memory', 'torch', 'OpenCV'])
def test_a_passing_failure_is_tried_again_and_a_lasting_one_is_told(code, clock):
    others = {
        'no memory': MemoryError(),
        'torch': RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
        'OpenCV': cv2.error('(-4:Insufficient memory) Failed to allocate 1 bytes'),
    }
    error = others.get(code) or OSError(getattr(errno, code), os.strerror(getattr(errno, code)))
    code = 'not enough memory' if code in others else code
    action, calls = failing(2, error)
    assert patiently(action, 'a.png') == b'data' and len(calls) == 3
    action, calls = failing(10**9, error)
    began = clock[0]
    with pytest.raises(StorageError, match=rf'a.png cannot be read: .*{code}.* for 0 s\. .*same command') as caught:
        patiently(action, 'a.png')
    assert caught.value.__cause__ is error and 3 <= len(calls) < 10 and clock[0] - began == pytest.approx(0.2)


@pytest.mark.parametrize(('seconds', 'tries'), [(30, 2), (20, 3), (3600, 2)])
def test_a_store_that_does_not_answer_is_not_waited_for_longer_than_one_that_refuses(clock, monkeypatch, seconds, tries):
    """A try that has taken hours was made by a process that was stopped, such as by `scontrol suspend`, and counts as one."""
    monkeypatch.delenv('MMCAE_RETRY_SECONDS')
    calls = []

    def stall():
        calls.append(clock[0])
        clock[0] += seconds
        raise OSError(errno.EIO, 'no answer')

    with pytest.raises(StorageError, match='no answer .*, for 60 s'):
        patiently(stall, 'a.png')
    assert len(calls) == tries


def test_other_errors_are_not_tried_again():
    for error in (
        OSError('image file is truncated'),
        FileNotFoundError(errno.ENOENT, 'x'),
        ValueError('x'),
        PermissionError(errno.EACCES, ''),
    ):
        action, calls = failing(1, error)
        with pytest.raises(type(error)):
            patiently(action, 'a.png')
        assert len(calls) == 1


def test_the_patience_is_a_number(monkeypatch):
    monkeypatch.setenv('MMCAE_RETRY_SECONDS', 'long')
    with pytest.raises(ConfigError, match="MMCAE_RETRY_SECONDS='long'"):
        patiently(failing(1, MemoryError())[0], 'a.png')


def test_missing_files_and_missing_file_systems(tmp_path):
    (tmp_path / 'mounted').mkdir()
    write_file(tmp_path / 'mounted/a', b'\0\xff')
    assert read_file(tmp_path / 'mounted/a') == b'\0\xff'
    (tmp_path / 'mounted/loop').symlink_to('loop')
    (tmp_path / 'point').mkdir()
    (tmp_path / 'point/nowhere').symlink_to('gone')
    for missing in ('mounted/b', 'mounted/folder/b', 'mounted/a/b', 'mounted/loop', 'point/nowhere'):
        with pytest.raises(FileNotFoundError) as caught:
            read_file(tmp_path / missing)
        assert caught.value.filename == str(tmp_path / missing)
        assert not is_unmounted(tmp_path / missing)
    (tmp_path / 'point/nowhere').unlink()
    assert is_unmounted(tmp_path / 'point/b') and is_unmounted(tmp_path / 'point/folder/b')


def test_what_may_not_be_read_is_no_bad_file(tmp_path, monkeypatch):
    (tmp_path / 'a').mkdir()
    with pytest.raises(StorageError, match=r'a cannot be read: Is a directory \(EISDIR\)\. Look at its permissions'):
        read_file(tmp_path / 'a')
