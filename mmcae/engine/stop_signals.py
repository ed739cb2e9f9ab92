"""Signals that ask a training to save and end: remembered when they come, and agreed on by all processes."""

import os
import signal
import threading
import time
from contextlib import suppress

import torch
from mmengine.dist import all_reduce, get_comm_device, get_world_size

STOPPING = {number: number.name for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)}
EXCHANGE = 10  # iterations
IMPATIENT = 2.0  # seconds after which a second Ctrl-C is meant; torchrun passes the first one on a second time


class StopSignals:
    """What has come since :meth:`listen`.

    Attributes:
        received: Number of the first signal that this process has got, 0 for none.
    """

    def __init__(self):
        self.received, self.received_at, self.agreed = 0, None, 0
        self.handlers = {}

    def listen(self):
        """Remember signals from here on, in place of ending; the main thread alone can. SIGHUP stays ignored where `nohup` has it so."""
        if threading.current_thread() is threading.main_thread():
            numbers = [number for number in STOPPING if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
            self.handlers = {number: signal.signal(number, self.receive) for number in numbers}

    def restore(self):
        """Leave signals to what handled them before."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}

    def receive(self, number, frame):
        """Remember the signal; what is in work is finished first. A second Ctrl-C ends at once."""
        if not self.received:
            self.received, self.received_at = number, time.monotonic()
            with suppress(OSError):  # print would fail where a signal interrupts another print, or has ended what reads the output
                below = '\n' if os.isatty(1) else ''  # the line of ShowProgress
                os.write(1, f'{below}{STOPPING[number]}: saving after this iteration.\n'.encode())
        elif number == signal.SIGINT and time.monotonic() - self.received_at > IMPATIENT:
            self.restore()
            raise KeyboardInterrupt

    def of_all(self, iteration):
        """The number of the signal that any process has got, 0 for none: all of them have to stop after the same iteration.

        Processes that talk through GPUs ask each other every `EXCHANGE` iterations, because the answer has to be waited for.

        Args:
            iteration (int): How many are done.
        """
        if get_world_size() == 1:
            return self.received
        if not self.agreed and (get_comm_device().type == 'cpu' or iteration % EXCHANGE == 0):
            number = torch.tensor(int(self.received))
            all_reduce(number, 'max')
            self.agreed = int(number)
        return self.agreed
