"""A loss that is no number stops the run before it is saved, and says where to look."""

import json

import pytest
from mmengine.registry import MODELS

from mmcae.models import CAE


@MODELS.register_module()
class BreakingCAE(CAE):
    """CAE whose alignment loss becomes infinite in some calls."""

    def __init__(self, breaks, **kwargs):
        super().__init__(**kwargs)
        self.breaks, self.calls = set(breaks), 0

    def loss(self, *args, **kwargs):
        losses = super().loss(*args, **kwargs)
        self.calls += 1
        if self.calls in self.breaks:
            losses['loss_align'] = losses['loss_align'] * float('inf')
        return losses


@pytest.mark.parametrize('processes', [None, 2])
def test_stops_before_saving(start, variant, read, tmp_path, processes):
    config = variant(
        "model = dict(type='BreakingCAE', breaks=[5])\n"
        'default_hooks = dict(checkpoint=dict(recovery_interval=1), logger=dict(interval=100))'
    )
    trainings = start(config=config, processes=processes)
    training = trainings[0] if processes else trainings
    assert training.wait() == 2 and 'Traceback' not in training.text, training.text
    line = training.text.strip().splitlines()[-1]
    assert 'The loss is not finite at iteration 5 (rank 0, lr 0.0008' in line or processes
    for part in ('loss_main 1.', 'loss_align inf', 'loss inf', 'iteration 5 (rank 0, lr', '--resume'):
        assert part in line
    report = json.loads((tmp_path / 'run/bad_loss_iter_5_rank_0.json').read_text())
    assert report['iteration'] == 5 and report['rank'] == 0 and report['loss']['loss_align'] == float('inf')
    assert len(report['files']) == 2 and all(name.startswith(f'{tmp_path}/images/') for name in report['files'])
    assert max(read(path)['meta']['iter'] for path in tmp_path.glob('run/*.pth')) == 4
