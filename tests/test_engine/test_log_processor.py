"""What the first of two processes logs, the other one simulated; real runs are compared in tests/test_distribution/test_parity.py."""

import math

import pytest
import torch

from mmcae.engine.log_processor import average


@pytest.fixture
def other(monkeypatch):
    """Have a second process with these scalars; this one is the first, whose names count."""
    names = []

    def add_what_the_other_has(tensor):
        present = [name in scalars for name in names[0]]
        values = [scalars.get(name, 0.0) for name in names[0]]
        tensor += torch.tensor([values, present], dtype=tensor.dtype)

    scalars = {}
    monkeypatch.setattr('mmcae.engine.log_processor.broadcast_object_list', lambda sent: names.append(sent[0]))
    monkeypatch.setattr('mmcae.engine.log_processor.all_reduce', add_what_the_other_has)
    return scalars


def test_losses_are_means_and_the_clock_is_ones_own(other):
    other.update(loss=3.0, mlm_acc=0.5, time=9.0, base_lr=9.0)
    own = dict(loss=1.0, mlm_acc=0.25, time=0.1, data_time=0.2, lr=1e-3, base_lr=2e-3)
    assert average(own) == dict(own, loss=2.0, mlm_acc=0.375)


def test_what_one_process_alone_has_stays(other):
    other.update(loss=3.0, loss_of_the_other=1.0)
    assert average(dict(loss=1.0, loss_of_the_first=5.0)) == dict(loss=2.0, loss_of_the_first=5.0)


def test_a_loss_that_is_no_number_shows(other):
    other.update(loss=math.nan, other=math.inf)
    averaged = average(dict(loss=1.0, other=1.0))
    assert math.isnan(averaged['loss']) and averaged['other'] == math.inf
