"""Training divided over processes or over steps is the same: losses and weights equal those of one process with the whole batch."""

from collections import Counter

import pytest
import torch

from mmcae.compat import has_accelerator

pytestmark = pytest.mark.skipif(has_accelerator(), reason='two processes would need two GPUs')
TOLERANCE = 1e-5


@pytest.fixture(scope='module')
def whole(train):
    """One process, eight images a step: two epochs of three steps."""
    return train('whole')


@pytest.fixture(scope='module')
def two(train):
    """Two processes, four images a step each."""
    return train('two', 'train_dataloader.batch_size=4', processes=2)


def assert_same(run, reference, accumulated=1):
    """Compare the losses of every step and the weights at the end; `pytest -rP` shows the largest differences."""
    assert len(run.logged) == 6 * accumulated and set(run.weights) == set(reference.weights)
    largest = {}
    for name in ('loss', 'loss_main', 'loss_align', 'mlm_acc'):
        found, expected = (torch.tensor([entry[name] for entry in each.logged], dtype=torch.float64) for each in (run, reference))
        largest[name] = float((found.unflatten(0, (-1, accumulated)).mean(dim=1) - expected).abs().max())
    largest['weights'] = max(float((run.weights[name] - reference.weights[name]).abs().max()) for name in run.weights)
    print('largest differences:', largest)
    assert max(largest.values()) < TOLERANCE, largest


def test_training_does_something(whole):
    """Or everything below would hold of runs that stand still."""
    assert whole.logged[-1]['loss'] < whole.logged[0]['loss'] - 0.01


def test_two_processes(two, whole):
    assert '(2 processes x 4 images x 1 accumulated)' in two.output
    assert_same(two, whole)


@pytest.mark.parametrize('change', ['model.backbone.with_cp=True', 'runner_type=FlexibleRunner'])
def test_two_processes_with_gradient_checkpointing_and_by_the_flexible_runner(train, whole, change):
    assert_same(train('changed', 'train_dataloader.batch_size=4', change, processes=2), whole)


@pytest.mark.parametrize(('processes', 'images'), [(1, 4), (2, 2)])
def test_accumulated_gradients(train, whole, processes, images):
    changes = (f'train_dataloader.batch_size={images}', 'optim_wrapper.accumulative_counts=2')
    accumulated = train('accumulated', *changes, processes=processes)
    assert f'Effective batch size 8 ({processes} process' in accumulated.output
    assert_same(accumulated, whole, accumulated=2)


def test_complementary_masks_with_all_that_saves_memory(train):
    """FSDP2, accumulated gradients, recomputed activations and a frozen block."""
    common = ('model.complementary=True', 'train_dataloader.dataset.pipeline.2.number=8', 'model.backbone.frozen_stages=1')
    saving = ('optim_wrapper.accumulative_counts=2', 'model.backbone.with_cp=True', 'train_dataloader.batch_size=2')
    shared = train('shared', *common, *saving, config='fsdp2.py', processes=2)
    assert_same(shared, train('complementary', *common), accumulated=2)


def test_adamw(train):
    assert_same(train('two', 'train_dataloader.batch_size=4', config='adamw.py', processes=2), train('whole', config='adamw.py'))


def test_every_image_is_seen_once_an_epoch(two, train):
    names = [f'{number:02d}.png' for number in range(24)]
    first, second = (two.ranks[0]['epochs'][epoch] + two.ranks[1]['epochs'][epoch] for epoch in range(2))
    assert sorted(first) == sorted(second) == names and first != second
    # Where the processes' shares would differ, one image is seen twice; none is left out.
    odd = train('odd', 'train_dataloader.batch_size=4', 'train_dataloader.dataset.indices=23', 'train_cfg.max_epochs=1', processes=2)
    seen = Counter(odd.ranks[0]['epochs'][0] + odd.ranks[1]['epochs'][0])
    assert sorted(seen) == names[:23] and sorted(seen.values()) == [1] * 22 + [2]


def test_logs_are_of_all_processes(two):
    for name in ('loss', 'loss_main', 'loss_align', 'mlm_acc'):
        own = torch.tensor([[step[name] for step in rank['losses']] for rank in two.ranks])
        assert not torch.equal(own[0], own[1])
        torch.testing.assert_close(torch.tensor([entry[name] for entry in two.logged]), own.mean(dim=0))


def test_only_the_first_process_writes(two, whole):
    def files(run):
        """All files below the work dir, without the time of the run in their names."""
        (stamp,) = (path.name for path in run.folder.iterdir() if path.is_dir())
        return sorted(str(path.relative_to(run.folder)).replace(stamp, 'TIME') for path in run.folder.rglob('*') if path.is_file())

    assert files(two) == files(whole)
    assert two.output.count('Effective batch size') == 1 and two.output.count('Epoch(train) [1][1/3]') == 1
