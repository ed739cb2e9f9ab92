"""Signals are remembered, and processes agree on them; real ones are in tests/test_faults/test_lost_processes.py."""

import signal

import pytest
import torch

from mmcae.engine.stop_signals import StopSignals


def test_a_second_ctrl_c_ends_at_once(monkeypatch):
    """But not one that a launcher passes on a moment later, and no second SIGTERM."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signals, now = StopSignals(), [100.0]
    monkeypatch.setattr('time.monotonic', lambda: now[0])
    signals.listen()
    signal.raise_signal(signal.SIGINT)
    now[0] += 1
    signal.raise_signal(signal.SIGINT)
    now[0] += 60
    signal.raise_signal(signal.SIGTERM)
    assert signals.received == signals.of_all(1) == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.parametrize(('device', 'exchanges', 'stopped_after'), [('cpu', [1, 2, 3], 3), ('cuda', [10], 10)])
def test_processes_that_talk_through_gpus_ask_each_other_less_often(monkeypatch, device, exchanges, stopped_after):
    """Another process gets a signal during the third iteration."""
    asked = []

    def all_reduce(number, op):
        asked.append(done)
        number.fill_(signal.SIGUSR1 if done >= 3 else 0)

    for name, replacement in dict(get_comm_device=lambda: torch.device(device), all_reduce=all_reduce, get_world_size=lambda: 2).items():
        monkeypatch.setattr(f'mmcae.engine.stop_signals.{name}', replacement)
    signals, done = StopSignals(), 1
    while not signals.of_all(done):
        done += 1
    assert (asked, done) == (exchanges, stopped_after)
    done += 1
    assert signals.of_all(done) == signal.SIGUSR1  # until the update that follows
