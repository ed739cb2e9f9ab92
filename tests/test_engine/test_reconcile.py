"""Schedules, learning rates and lengths that have changed when a run is resumed; and the same with real runs."""

import copy
from types import SimpleNamespace

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

from mmcae.engine import EpochBasedTrainLoop, IterBasedTrainLoop
from mmcae.engine.reconcile import reconcile
from mmcae.registry import PARAM_SCHEDULERS
from mmcae.utils.errors import CheckpointError

LENGTH = 5  # iterations of an epoch
COSINE = dict(type='mmcae.WarmupCosineLR', warmup=1, end=4, by_epoch=True, convert_to_iter_based=True)
CHAINED = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=8),
    dict(type='PolyLR', power=0.9, by_epoch=False, end=20),
    dict(type='MultiStepLR', by_epoch=True, milestones=[1, 3], gamma=0.5),
]


class FakeRunner(SimpleNamespace):
    """What a Runner has when it is about to resume, and training without images."""

    def train_to(self, iteration):
        """Update weights and schedules as the hooks of mmengine do; returns the learning rates that the iterations had."""
        rates = []
        for done in range(self.iteration + 1, iteration + 1):
            rates.append([group['lr'] for group in self.optim_wrapper.param_groups])
            self.optim_wrapper.update_params(self.model(torch.ones(1, 2)).sum())
            for scheduler in self.param_schedulers:
                if not scheduler.by_epoch or done % LENGTH == 0:
                    scheduler.step()
        self.iteration = iteration
        return rates

    def save(self):
        meta = dict(epoch=self.iteration // LENGTH, iter=self.iteration)
        meta['mmcae'] = dict(epoch_length=LENGTH, max_iters=self.max_iters, seed=3)
        schedulers = [scheduler.state_dict() for scheduler in self.param_schedulers]
        return copy.deepcopy(dict(meta=meta, optimizer=self.optim_wrapper.state_dict(), param_schedulers=schedulers))

    def resume(self, checkpoint, *options):
        """As mmengine's Runner; returns what was logged."""
        checkpoint = copy.deepcopy(checkpoint)
        reconcile(self, checkpoint, *options)
        self.iteration = checkpoint['meta']['iter']
        self.optim_wrapper.load_state_dict(checkpoint['optimizer'])
        for scheduler, state in zip(self.param_schedulers, checkpoint.get('param_schedulers', ()), strict=False):
            scheduler.load_state_dict(state)
        return ' '.join(self.log)


def make(schedulers, lr=0.1, length=LENGTH, max_epochs=4, loop=EpochBasedTrainLoop, **optimizer):
    model = nn.Linear(2, 2)
    settings = dict(type='AdamW', lr=lr, weight_decay=0.05) | optimizer
    wrapper = build_optim_wrapper(
        model, dict(type='OptimWrapper', optimizer=settings, constructor='mmcae.LayerDecayOptimWrapperConstructor')
    )
    built = [
        PARAM_SCHEDULERS.build(dict(settings), default_args=dict(optimizer=wrapper, epoch_length=length))
        if settings.get('convert_to_iter_based')
        else PARAM_SCHEDULERS.build(dict(settings), default_args=dict(optimizer=wrapper))
        for settings in schedulers
    ]
    log, train_loop = [], loop.__new__(loop)
    train_loop.dataloader = SimpleNamespace(batch_sampler=SimpleNamespace(seed=0))
    return FakeRunner(
        model=model,
        optim_wrapper=wrapper,
        param_schedulers=built,
        train_loop=train_loop,
        train_dataloader=range(length),
        max_iters=max_epochs * length,
        logger=SimpleNamespace(warning=log.append),
        log=log,
        iteration=0,
    )


SCHEDULES = pytest.mark.parametrize('schedulers', [[COSINE], CHAINED, []], ids=['cosine', 'chained', 'none'])


@SCHEDULES
def test_without_a_change_nothing_is_touched(schedulers):
    whole, first, second = (make(schedulers) for _ in range(3))
    rates = whole.train_to(20)
    first.train_to(7)
    saved = first.save()
    kept = copy.deepcopy(saved)
    reconcile(second, saved)
    assert str(saved) == str(kept)
    assert second.resume(saved) == '' and second.train_loop.seed == 3
    assert second.train_to(20) == rates[7:]


@SCHEDULES
@pytest.mark.parametrize('at', [5, 7, 12])
def test_another_learning_rate_holds_from_here_on(schedulers, at):
    """And all that follows is as if it had been so from the beginning."""
    first, second, whole = make(schedulers), make(schedulers, lr=0.3, weight_decay=0.1), make(schedulers, lr=0.3)
    first.train_to(at)
    log = second.resume(first.save())
    assert 'From here on the config holds: lr 0.1 -> 0.3; weight_decay 0.05 -> 0.1' in log
    expected = whole.train_to(20)[at:]
    for now, then in zip(second.train_to(20), expected, strict=True):
        assert now == pytest.approx(then, rel=1e-12)
    assert {group['weight_decay'] for group in second.optim_wrapper.param_groups} == {0.1, 0.0}
    assert second.optim_wrapper.optimizer.state[second.model.weight]['step'] == 20  # the moments go on


def test_a_longer_schedule_holds_from_here_on():
    longer = [dict(COSINE, end=6)]
    first, second, whole = make([COSINE]), make(longer, max_epochs=6), make(longer, max_epochs=6)
    first.train_to(12)
    log = second.resume(first.save())
    assert 'WarmupCosineLR.end 20 -> 30' in log and 'The training has 30 iterations (20 in the checkpoint)' in log
    assert second.train_to(30) == whole.train_to(30)[12:]


def test_a_longer_training_than_schedule_is_told():
    first, second = make([COSINE]), make([COSINE], max_epochs=6)
    first.train_to(12)
    log = second.resume(first.save())
    assert 'The training has 30 iterations (20 in the checkpoint); the schedule ends after 20, the rates then stay as they are' in log
    assert 'From here on' not in log


def test_other_schedulers():
    first, second, whole = make([COSINE]), make(CHAINED), make(CHAINED)
    first.train_to(9)
    log = second.resume(first.save())
    assert '1 schedulers -> 3' in log and 'another scheduler -> LinearLR' in log
    for now, then in zip(second.train_to(20), whole.train_to(20)[9:], strict=True):
        assert now == pytest.approx(then, rel=1e-12)


@pytest.mark.parametrize(('at', 'length', 'expected'), [(10, 10, 20), (7, 10, 14), (7, 2, 2), (10, 2, 4)])
def test_epochs_of_another_length(at, length, expected):
    """Another batch size: the same share of the images has been seen."""
    first, second = make([COSINE]), make([COSINE], length=length)
    first.train_to(at)
    log = second.resume(first.save())
    assert second.iteration == expected and f'going on from iteration {expected}' in log
    assert f'WarmupCosineLR.end 20 -> {4 * length}' in log
    whole = make([COSINE], length=length)
    whole.train_to(expected)
    assert second.optim_wrapper.param_groups[0]['lr'] == whole.optim_wrapper.param_groups[0]['lr']


@pytest.mark.parametrize(
    ('at', 'changed_data', 'expected'), [(7, 'next_epoch', 10), (7, 'continue', 7), (10, 'next_epoch', 10), (17, 'next_epoch', 17)]
)
@pytest.mark.parametrize('schedulers', [[COSINE], CHAINED], ids=['cosine', 'chained'])
def test_another_data_set_of_the_same_length(schedulers, at, changed_data, expected):
    """The schedule goes to the next epoch too. The last epoch is continued."""
    first, second, whole = make(schedulers), make(schedulers), make(schedulers)
    first.train_to(at)
    saved = first.save()
    saved['meta']['mmcae']['data'] = dict(images=20, fingerprint='a')
    second.train_loop.data = dict(images=20, fingerprint='b')
    log = second.resume(saved, changed_data)
    assert 'The data set has changed since the checkpoint was written: 20 images as before, but other files' in log
    assert second.iteration == expected and 'From here on' not in log
    assert ('Going on with epoch 3, from iteration 10' in log) == (at < expected)
    assert ('because it is the last' in log) == (at == 17)
    for now, then in zip(second.train_to(20), whole.train_to(20)[expected:], strict=True):
        assert now == pytest.approx(then, rel=1e-12)


def test_iterations_are_counted_as_they_are():
    settings = dict(schedulers=[dict(type='PolyLR', by_epoch=False, end=20)], loop=IterBasedTrainLoop)
    first, second = make(**settings), make(**settings, length=3)
    first.train_to(7)
    second.resume(first.save())
    assert second.iteration == 7


def test_nothing_left_to_train():
    first, second = make([COSINE]), make([COSINE], max_epochs=2)
    first.train_to(12)
    assert 'Nothing is left to train' in second.resume(first.save())


def test_checkpoints_of_mmengine():
    """Without what mmcae's hook records: the settings are compared all the same."""
    first, second = make([COSINE]), make([COSINE], lr=0.2, length=10)
    first.train_to(10)
    saved = first.save()
    del saved['meta']['mmcae']
    log = second.resume(saved)
    assert 'lr 0.1 -> 0.2' in log and second.iteration == 20


def test_what_cannot_be_changed_is_refused():
    saved = make([COSINE]).save()
    for other in (dict(type='SGD'), dict(type='Adagrad')):
        model = make([COSINE])
        model.optim_wrapper = build_optim_wrapper(model.model, dict(type='OptimWrapper', optimizer=dict(lr=0.1, **other)))
        with pytest.raises(CheckpointError, match='optimizer is another one'):
            model.resume(saved)
    plateau = [dict(type='ReduceOnPlateauLR', monitor='loss', by_epoch=True)]
    first, second = make(plateau), make(plateau, lr=0.2)
    with pytest.raises(CheckpointError, match='follows a metric.*lr 0.1 -> 0.2'):
        second.resume(first.save())
    assert make(plateau).resume(first.save()) == ''
