"""When a loss that is not finite stops the run; a complete run is in tests/test_faults/test_bad_loss.py."""

import json
from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.structures import BaseDataElement
from torch import nn

from mmcae.engine import AmpOptimWrapper
from mmcae.engine.checks.loss import LossCheck
from mmcae.utils.errors import ConfigError, TrainingError


@pytest.fixture
def runner(tmp_path):
    """With a learning rate of 0.25; `runner.scale()` gives it a loss scaler."""
    model = nn.Linear(2, 1)
    wrapper = AmpOptimWrapper(dtype='bfloat16', optimizer=torch.optim.SGD(model.parameters(), lr=0.25))

    def scale():
        wrapper.loss_scaler = torch.amp.GradScaler('cpu')

    logger = MMLogger.get_instance(f'loss_check_{tmp_path.name}', log_level='ERROR')
    return SimpleNamespace(iter=0, epoch=2, work_dir=str(tmp_path), optim_wrapper=wrapper, logger=logger, scale=scale, model=model)


def give(check, runner, *losses):
    """Run one iteration for each loss; returns the number of iterations so far."""
    for loss in losses:
        batch = dict(data_samples=[BaseDataElement(metainfo=dict(img_path=f'images/{runner.iter}.png')), BaseDataElement()])
        check.after_train_iter(runner, batch, dict(loss=torch.tensor(loss), loss_main=torch.tensor(1.5)))
        runner.iter += 1
    return runner.iter


INF, NAN = float('inf'), float('nan')


@pytest.mark.parametrize('bad', [INF, -INF, NAN])
def test_first_one_stops_without_scaling(runner, tmp_path, bad):
    with pytest.raises(TrainingError, match=r'iteration 4 \(rank 0, lr 0.25\).*loss_main 1.5.*bad_loss_iter_4_rank_0.json'):
        give(LossCheck(), runner, 1.0, 0.0, 1e30, bad)
    report = json.loads((tmp_path / 'bad_loss_iter_4_rank_0.json').read_text())
    assert report['files'] == ['images/3.png'] and report['lr'] == [0.25] and report['epoch'] == 3
    assert len(list(tmp_path.iterdir())) == 1


def test_patience_counts_consecutive_iterations(runner):
    check = LossCheck(patience=3)
    assert give(check, runner, NAN, INF, 1.0, NAN, NAN, 1.0, NAN, NAN) == 8
    with pytest.raises(TrainingError, match='Stopped after 3 in a row'):
        give(check, runner, NAN)


def test_scaled_patience_with_a_loss_scaler(runner):
    """The scaler skips the step."""
    runner.scale()
    check = LossCheck(patience=1, scaled_patience=2)
    assert give(check, runner, 1.0, INF, 1.0, NAN, 1.0) == 5
    before = runner.model.weight.clone()
    scale = runner.optim_wrapper.loss_scaler.get_scale()
    runner.optim_wrapper.update_params(runner.model(torch.tensor([[INF, 1.0]])).sum())
    assert torch.equal(runner.model.weight, before) and runner.optim_wrapper.loss_scaler.get_scale() == scale / 2
    with pytest.raises(TrainingError, match='2 in a row'):
        give(check, runner, NAN, NAN)


@pytest.mark.parametrize('settings', [dict(patience=0), dict(scaled_patience=0)])
def test_patience_must_be_positive(settings):
    with pytest.raises(ConfigError, match='at least 1'):
        LossCheck(**settings)
