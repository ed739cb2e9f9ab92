"""Interrupted and resumed, a run does what it would have done: the same losses, weights, averages and schedules, to the last bit."""

import math
import re
import shutil
import signal

import pytest

ITERATIONS = """
train_cfg = dict(_delete_=True, type='mmcae.IterBasedTrainLoop', max_iters=16)
train_dataloader = dict(num_workers=0, sampler=dict(type='{sampler}'))
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=6), dict(type='PolyLR', by_epoch=False, end=17)]
log_processor = dict(by_epoch=False)
optim_wrapper = dict(accumulative_counts=2)
"""


def ended(trainings):
    """Wait for all ranks; returns their exit codes."""
    trainings = trainings if isinstance(trainings, list) else [trainings]
    codes = [training.wait() for training in trainings]
    for training in trainings:
        print(training.text)  # pytest shows it when something is wrong
    return codes


@pytest.fixture
def stopping(variant):
    """A config that gets a signal in an iteration: `stopping(4, SIGINT, rank=1)`."""

    def make(iteration, number=signal.SIGTERM, rank=0, text=''):
        hook = dict(type='SignalAt', iteration=iteration, number=int(number), rank=rank)
        return variant(f'{text}\ndefault_hooks = dict(signal={hook})')

    return make


@pytest.mark.parametrize('processes', [None, 2])
def test_epochs(start, stopping, read, differences, tmp_path, processes):
    """Stopped within an epoch, with drop path, random views, a loader worker, EMA, and a warm-up counted in epochs."""
    length, last = 6 // (processes or 1), (processes or 1) - 1
    settings = dict(processes=processes, options=['randomness.seed=3'])
    whole = start(work_dir=tmp_path / 'whole', **settings)
    # One rank gets the signal, the others have to stop after the same iteration.
    parts = start(work_dir=tmp_path / 'parts', config=stopping(length + 2, signal.SIGTERM, rank=last), **settings)
    assert ended(whole) == [0] * (last + 1)
    assert ended(parts) == [143] * (last + 1)
    resumed = start('--resume', work_dir=tmp_path / 'parts', **settings)
    assert ended(resumed) == [0] * (last + 1)
    text = (resumed[0] if processes else resumed).text
    assert f'resumed from {tmp_path}/parts/recovery_{length + 2}.pth' in text and f'resumed epoch: 1, iter: {length + 2}' in text
    assert f'Epoch(train) [2][3/{length}]' in text and f'Epoch(train) [2][2/{length}]' not in text
    assert not list(tmp_path.glob('parts/recovery_*'))  # the last checkpoint holds the end

    whole, parts = read(tmp_path / 'whole/epoch_3.pth'), read(tmp_path / 'parts/epoch_3.pth')
    losses = whole['message_hub']['log_scalars']['train/loss']['history'].tolist()
    assert len(losses) == 3 * length == len(set(losses))
    assert 'ema_state_dict' in whole and differences(whole, parts) == []


@pytest.mark.parametrize('sampler', ['InfiniteSampler', 'DefaultSampler'])
def test_iterations(start, variant, stopping, read, differences, tmp_path, sampler):
    """Counted in iterations, with gradient accumulation, recursive schedules, and a seed that only the checkpoint knows.

    Resumed once, and stopped and resumed again: both get the same.
    """
    text = ITERATIONS.replace('{sampler}', sampler)
    once, twice = tmp_path / 'once', tmp_path / 'twice'
    settings = dict(options=['default_hooks.checkpoint.by_epoch=False', 'default_hooks.checkpoint.interval=16'])
    if sampler == 'DefaultSampler':  # and with views that the device makes
        text += "train_dataloader['collate_fn'] = dict(type='mmcae.collate_views')\n"
        settings['options'] += ['train_dataloader.dataset.pipeline.2.backend=device']
    config = variant(text)
    assert ended(start(config=stopping(5, signal.SIGINT, text=text), work_dir=once, **settings)) == [130]
    (saved,) = once.glob('recovery_*')
    assert saved.name == 'recovery_6.pth'  # after an update: a checkpoint holds no gradients
    shutil.copytree(once, twice)
    last = start('--resume', config=config, work_dir=once, **settings)
    assert ended(start('--resume', config=stopping(10, text=text), work_dir=twice, **settings)) == [143]
    assert ended(start('--resume', config=config, work_dir=twice, **settings)) == [0] == ended(last)
    once, twice = read(once / 'iter_16.pth'), read(twice / 'iter_16.pth')
    losses = once['message_hub']['log_scalars']['train/loss']['history'].tolist()
    assert len(losses) == 16 == len(set(losses))
    assert differences(once, twice) == []


def test_changes_of_the_config_hold_and_are_told(start):
    """Learning rate, length of schedule and training, and batch size: 6 iterations of 2 images are 4 of 3."""
    options = ['train_dataloader.num_workers=0', 'train_cfg.max_epochs=1']
    assert ended(start(options=options)) == [0]
    changes = ['optim_wrapper.optimizer.lr=0.002', 'param_scheduler.0.end=4', 'train_cfg.max_epochs=2', 'train_dataloader.batch_size=3']
    training = start('--resume', options=[options[0], *changes])
    assert ended(training) == [0]
    text = training.text
    assert 'An epoch has 4 iterations, and had 6 in the checkpoint' in text and 'going on from iteration 4' in text
    assert 'From here on the config holds: lr 0.001 -> 0.002; WarmupCosineLR.end 18 -> 16; WarmupCosineLR.warmup 6 -> 4' in text
    assert 'The training has 8 iterations (6 in the checkpoint); the schedule ends after 16 (`end` in param_scheduler)' in text
    # The first step after a warm-up of one epoch has the full rate, the third a cosine of 2 / 12.
    assert re.search(r'\[2\]\[1/4\]  base_lr: 2.0000e-03 lr: 2.0000e-03', text)
    assert f'[2][3/4]  base_lr: {0.001 * (1 + math.cos(math.pi * 2 / 12)):.4e}' in text
