"""Files that appear whole or not at all."""

import errno
import os

import pytest
from mmengine.fileio import get_file_backend

import mmcae.utils.atomic_files  # noqa: F401

BACKEND = dict(backend='mmcae.atomic')


def test_files_are_written_with_their_folders_and_replaced(tmp_path):
    backend, path = get_file_backend(str(tmp_path), backend_args=BACKEND), tmp_path / 'a' / 'b' / 'x.pth'
    for content in (b'first', b''):
        backend.put(content, str(path))
        assert path.read_bytes() == content and os.listdir(path.parent) == ['x.pth']
    backend.put_text('käse', path)
    assert path.read_text(encoding='utf-8') == 'käse'


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
