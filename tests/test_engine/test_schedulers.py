"""The schedule of the paper's recipes against its definition, step by step, through mmengine's loop, and after a resume."""

import math

import pytest
import torch
from mmengine.dataset import DefaultSampler
from torch.utils.data import TensorDataset

from mmcae.engine import Runner, WarmupCosineLR
from mmcae.registry import PARAM_SCHEDULERS
from mmcae.utils.errors import ConfigError


def official(lr, floor, warmup, total):
    """Rates of all steps: linear from 0 to lr, both included, then half a cosine that starts at lr and would end at the floor."""
    rates = [lr * i / (warmup - 1) for i in range(warmup)]
    steps = total - warmup
    return rates + [floor + (lr - floor) / 2 * (1 + math.cos(math.pi * i / steps)) for i in range(steps)]


def optimizer_of(*rates):
    return torch.optim.SGD([dict(params=[torch.nn.Parameter(torch.zeros(1))], lr=rate) for rate in rates])


def run(scheduler, optimizer, steps):
    """The rates in force at each step."""
    rates = []
    for _ in range(steps):
        rates.append([group['lr'] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return rates


def test_shape():
    optimizer = optimizer_of(1.5e-3)
    scheduler = WarmupCosineLR(optimizer, warmup=10, eta_min=1e-5, end=100, by_epoch=False)
    rates = [rate for (rate,) in run(scheduler, optimizer, 100)]
    assert rates == pytest.approx(official(1.5e-3, 1e-5, 10, 100), rel=1e-12)
    assert rates[0] == 0 and rates[9] == rates[10] == 1.5e-3
    assert rates[55] == pytest.approx((1.5e-3 + 1e-5) / 2)  # half way
    assert 1e-5 < rates[-1] < 1.2e-5


def test_rate_stays_after_the_end():
    optimizer = optimizer_of(1.0)
    rates = run(WarmupCosineLR(optimizer, warmup=2, end=5, by_epoch=False), optimizer, 8)
    assert rates[4] == rates[5] == rates[7]


def test_without_warmup():
    optimizer = optimizer_of(1.0)
    rates = run(WarmupCosineLR(optimizer, warmup=0, end=4, by_epoch=False), optimizer, 4)
    assert [rate for (rate,) in rates] == pytest.approx([(1 + math.cos(math.pi * i / 4)) / 2 for i in range(4)])


def test_groups_keep_their_share():
    """Layer-wise rates keep their ratio all the way down to the floor, which belongs to the largest."""
    optimizer = optimizer_of(1e-2, 1e-3)
    rates = run(WarmupCosineLR(optimizer, warmup=5, eta_min=1e-4, end=50, by_epoch=False), optimizer, 50)
    assert [large for large, _ in rates] == pytest.approx(official(1e-2, 1e-4, 5, 50))
    assert all(small == pytest.approx(large / 10) for large, small in rates)


def test_later_begin():
    optimizer = optimizer_of(1.0)
    rates = run(WarmupCosineLR(optimizer, warmup=3, begin=4, end=14, by_epoch=False), optimizer, 14)
    assert [rate for (rate,) in rates[4:]] == pytest.approx(official(1.0, 0, 3, 10))


def test_epochs_become_iterations():
    optimizer = optimizer_of(1.0)
    config = dict(type='mmcae.WarmupCosineLR', warmup=2, eta_min=0.1, end=10, by_epoch=True, convert_to_iter_based=True)
    scheduler = PARAM_SCHEDULERS.build(config, default_args=dict(optimizer=optimizer, epoch_length=7))
    assert not scheduler.by_epoch
    assert [rate for (rate,) in run(scheduler, optimizer, 70)] == pytest.approx(official(1.0, 0.1, 14, 70))


@pytest.mark.parametrize('settings', [dict(warmup=10, end=10), dict(warmup=-1, end=10), dict(warmup=3), dict(warmup=8, begin=5, end=10)])
def test_warmup_must_fit(settings):
    with pytest.raises(ConfigError, match='warm-up .* must be shorter than the schedule'):
        WarmupCosineLR(optimizer_of(1.0), by_epoch=False, **settings)


def test_conversion_needs_epochs():
    with pytest.raises(ConfigError, match='belongs to a schedule with by_epoch=True'):
        WarmupCosineLR.build_iter_from_epoch(optimizer_of(1.0), warmup=2, end=10, by_epoch=False, epoch_length=7)


class Model(torch.nn.Module):
    """Records the rate at which it is trained."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.rates = []

    def train_step(self, data, optim_wrapper):
        self.rates.append(optim_wrapper.get_lr()['lr'][0])
        optim_wrapper.update_params(self.layer(data[0]).mean())
        return {}


def train(work_dir, epochs, resume=False):
    """Mmengine's own loop, five iterations an epoch; returns the rates it trained with."""
    model = Model()
    schedule = dict(type='mmcae.WarmupCosineLR', warmup=2, eta_min=0.1, end=6, convert_to_iter_based=True)
    Runner(
        model=model,
        work_dir=str(work_dir),
        train_dataloader=dict(
            batch_size=1,
            dataset=TensorDataset(torch.zeros(5, 1)),
            sampler=dict(type=DefaultSampler),
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=1.0)),
        param_scheduler=schedule,
        resume=resume,
        experiment_name=f'{work_dir.name}-{epochs}-{resume}',
    ).train()
    return model.rates


def test_in_mmengines_loop_and_after_a_resume(tmp_path):
    wanted = official(1.0, 0.1, 10, 30)
    assert train(tmp_path / 'whole', 6) == pytest.approx(wanted)
    assert train(tmp_path / 'parts', 3) == pytest.approx(wanted[:15])
    assert train(tmp_path / 'parts', 6, resume=True) == pytest.approx(wanted[15:])
