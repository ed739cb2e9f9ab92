"""Validation and test in a lower precision: predictions are, metrics are not."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.structures import BaseDataElement
from torch import nn
from torch.utils.data import DataLoader

from mmcae import engine
from mmcae.utils.errors import ConfigError

KINDS = dict(val=engine.ValLoop, test=engine.TestLoop)


class Model(nn.Linear):
    """Predicts in the precision of the moment; with `losses` the last data sample holds them, as mmengine has it."""

    losses = False

    def test_step(self, batch):
        outputs = [BaseDataElement(score=score) for score in self(batch)]
        return [*outputs, BaseDataElement(loss=dict(loss_main=torch.tensor(3.0)))] if self.losses else outputs

    val_step = test_step


class Precisions(BaseMetric):
    """The precision of the predictions, and that of metrics."""

    def process(self, data_batch, data_samples):
        self.results += [(sample['score'].dtype, torch.is_autocast_enabled('cpu')) for sample in data_samples]

    def compute_metrics(self, results):
        return dict(precisions=set(results), count=len(results))


def make(mode, called=None, model=None, **settings):
    runner = SimpleNamespace(
        model=model or Model(4, 2),
        visualizer=SimpleNamespace(),
        call_hook=lambda name, **_: called.append(name) if called is not None else None,
    )
    return KINDS[mode](runner, DataLoader(torch.randn(6, 4), batch_size=3), Evaluator(Precisions()), **settings)


@pytest.mark.parametrize('mode', KINDS)
@pytest.mark.parametrize(('dtype', 'expected'), [('float32', torch.float32), ('bfloat16', torch.bfloat16)])
def test_precision(mode, dtype, expected):
    assert make(mode, dtype=dtype).run() == dict(precisions={(expected, False)}, count=6)


@pytest.mark.parametrize('mode', KINDS)
def test_hooks_and_losses(mode):
    called = []
    model = Model(4, 2)
    model.losses = True
    metrics = make(mode, called, model).run()
    assert metrics[f'{mode}_loss'] == 3 and metrics['count'] == 6
    batches = [f'before_{mode}_iter', f'after_{mode}_iter'] * 2
    assert called == [f'before_{mode}', f'before_{mode}_epoch', *batches, f'after_{mode}_epoch', f'after_{mode}']


def test_unknown_dtype():
    with pytest.raises(ConfigError, match="ValLoop: dtype='fp16'"):
        make('val', dtype='fp16')
