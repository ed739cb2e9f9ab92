"""Signals to and from other processes."""

import os
import signal
import subprocess
from contextlib import contextmanager


def signal_group(process: subprocess.Popen, number: int):
    """Send a signal to a process and all that it started."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass  # all of them have ended


@contextmanager
def interruptible():
    """Have a request to end this process (SIGTERM, a closed terminal) do what Ctrl-C does, so that nothing stays behind."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    # What nohup ignores stays ignored.
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
