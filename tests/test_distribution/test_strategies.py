"""Averaged weights, and the strategies that share a model out over processes, in real runs of two processes over gloo."""

import importlib.util

import pytest
import torch

from mmcae.checkpoints import load_state, read_checkpoint
from mmcae.compat import has_accelerator

pytestmark = pytest.mark.skipif(has_accelerator(), reason='two processes would need two GPUs')
HALF = 'train_dataloader.batch_size=4'


@pytest.fixture(scope='module')
def whole(train):
    """One process with the whole batch, plain."""
    return train('whole')


def test_averaged_weights_are_what_a_checkpoint_gives(train, whole, fork_tool, tmp_path):
    """Two steps by hand from the weights that the run itself has: the average is in state_dict, and so in what the converter writes."""
    averaged = train('averaged', HALF, config='ema.py', processes=2)
    raw = {name.removeprefix('module.'): value for name, value in averaged.checkpoint['ema_state_dict'].items() if name != 'steps'}
    for name, value in whole.weights.items():
        torch.testing.assert_close(raw[name], value, rtol=0, atol=1e-5)  # averaging does not change the training
    assert any(not torch.allclose(averaged.weights[name], value, atol=1e-3) for name, value in whole.weights.items())
    assert_same_probes(averaged, whole)  # of the weights that are trained
    source, converted = averaged.folder / 'epoch_2.pth', tmp_path / 'encoder.pth'
    code, output = fork_tool('tools/model_converters/convert.py', source, converted, '--to', 'encoder')
    assert code == 0, output
    encoder = load_state(converted)
    assert len(encoder) > 20 and all(torch.equal(value, averaged.weights[f'backbone.{name}']) for name, value in encoder.items())


def test_the_average_is_exponential(train):
    """Saved after each epoch of one step: average' = 0.8 average + 0.2 weights."""
    run = train('averaged', 'train_dataloader.batch_size=24', config='ema.py')
    first, second = (read_checkpoint(run.folder / f'epoch_{epoch}.pth') for epoch in (1, 2))
    name = 'backbone.blocks.0.attn.qkv.weight'
    expected = 0.8 * first['state_dict'][name] + 0.2 * second['ema_state_dict'][f'module.{name}']
    torch.testing.assert_close(second['state_dict'][name], expected)


def test_fully_sharded(train, fork_tool, tmp_path):
    """In mixed precision as the recipe: the same training as without sharding; one whole checkpoint; exact after an interruption."""
    plain, sharded = (train('run', HALF, config=f'{name}.py', processes=2) for name in ('amp', 'fsdp'))
    assert_same_training(sharded, plain)
    assert_same_probes(sharded, plain)
    assert len(sharded.statistics) == len(sharded.logged) and not any('stat/effective_rank' in entry for entry in sharded.statistics)
    assert all(entry['stat/effective_rank'] > 0 and entry['stat/grad_norm/backbone'] > 0 for entry in plain.statistics)
    code, output = fork_tool(
        'tools/model_converters/convert.py', sharded.folder / 'epoch_2.pth', tmp_path / 'encoder.pth', '--to', 'encoder'
    )
    assert code == 0, output


def test_fully_sharded_resumes(train, tmp_path):
    whole = train('whole', HALF, config='fsdp.py', processes=2)
    first = train('first', HALF, 'train_cfg.max_epochs=1', config='fsdp.py', processes=2)
    second = train('second', HALF, config='fsdp.py', processes=2, arguments=('--resume', first.folder / 'epoch_1.pth'))
    assert_same_training(second, whole, steps=slice(3, None))


def test_only_matrices_are_decayed_when_sharded(train):
    """The optimizer sees flat pieces of them."""
    sharded = train('sharded', HALF, config='fsdp.py', processes=2)
    groups = {group['weight_decay']: group['param_names'] for group in sharded.checkpoint['optimizer']['param_groups']}
    assert set(groups) == {0.0, 0.05}
    assert 'backbone.blocks.0.attn.qkv.weight' in groups[0.05] and 'backbone.blocks.0.norm1.weight' in groups[0.0]


def test_fsdp2_is_the_same_training_as_one_process(train, whole):
    sharded = train('sharded', HALF, config='fsdp2.py', processes=2)
    assert_same_training(sharded, whole)
    assert_same_probes(sharded, whole)
    assert set(sharded.statistics[-1]) == {'stat/images_per_second', 'stat/data_wait', 'step'}


@pytest.mark.skipif(importlib.util.find_spec('deepspeed') is None, reason='DeepSpeed is an extra')
def test_deepspeed(train, fork_tool, tmp_path):
    plain, shared = (train('run', HALF, config=f'{name}.py', processes=2) for name in ('adamw', 'zero'))
    assert_same_training(shared, plain, names=('loss', 'loss_main', 'loss_align'))
    first = train('first', HALF, 'train_cfg.max_epochs=1', config='zero.py', processes=2)
    second = train('second', HALF, config='zero.py', processes=2, arguments=('--resume', first.folder / 'epoch_1.pth'))
    assert_same_training(second, shared, steps=slice(3, None), names=('loss',))
    source = second.folder / 'epoch_2.pth' / 'mp_rank_00_model_states.pt'
    code, output = fork_tool('tools/model_converters/convert.py', source, tmp_path / 'encoder.pth', '--to', 'encoder')
    assert code == 0, output


def test_tensorboard(train):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train('run', HALF, config='events.py', processes=2)
    (events,) = run.folder.rglob('events.out.tfevents.*')  # of the first process alone
    scalars = EventAccumulator(str(events)).Reload()
    for name in ('loss', 'mlm_acc'):
        found = [event.value for event in scalars.Scalars(name)]
        assert found == pytest.approx([step[name] for step in run.logged], abs=1e-6)


def assert_same_training(run, reference, steps=slice(None), names=('loss', 'loss_main', 'loss_align', 'grad_norm'), tolerance=1e-5):
    for step, expected in zip(run.logged, reference.logged[steps], strict=True):
        for name in names:
            assert step[name] == pytest.approx(expected[name], rel=tolerance), name
    assert set(run.weights) == set(reference.weights)
    for name, value in reference.weights.items():
        torch.testing.assert_close(run.weights[name], value, rtol=0, atol=tolerance)


def assert_same_probes(run, reference):
    """What mmcae.OnlineProbe sees of the encoder while it trains."""
    assert run.probed.keys() == reference.probed.keys() == {3, 6}
    for step, expected in reference.probed.items():
        assert run.probed[step] == pytest.approx(expected, rel=1e-3), step
