"""Signals that ask a process to end; one process for each folder."""

import os
import signal
import time

import pytest

from mmcae.utils.errors import DataError
from mmcae.utils.processes import interruptible, locked


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            os.kill(os.getpid(), signal.SIGHUP)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_folder_is_held_by_one_process_and_free_after_it(tmp_path):
    for _ in range(2):
        with locked(tmp_path / '.lock'), pytest.raises(DataError, match=f'at work in {tmp_path}'), locked(tmp_path / '.lock'):
            pass
