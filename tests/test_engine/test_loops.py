"""Where a loop that counts iterations goes on in its passes over the data, whatever has changed; real runs are in tests/test_faults/."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from torch.utils.data import BatchSampler, DataLoader, Dataset

from mmcae.engine import IterBasedTrainLoop
from mmcae.engine.loops import ExactLoop
from mmcae.utils.errors import DataError


class Numbers(Dataset):
    """Each item is its number."""

    metainfo = dict(classes=['a'])

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return index


def make(length=24, batch_size=3, sampler=DefaultSampler):
    sampler = sampler(Numbers(length), shuffle=True, seed=7)
    loader = DataLoader(sampler.dataset, batch_sampler=BatchSampler(sampler, batch_size, drop_last=True))
    return IterBasedTrainLoop(SimpleNamespace(visualizer=SimpleNamespace()), loader, max_iters=1000)


def train(loop, iterations):
    """The images of so many iterations from where the loop is, one list."""
    batches = loop.batches()
    images = torch.cat([next(batches) for _ in range(iterations)]).tolist()
    loop._iter += iterations
    return images


def resumed(loop, anew=False, **settings):
    other = make(**settings)
    other._iter = loop._iter
    left_out = other.go_to(loop._iter, loop.state(), anew)
    return other, left_out


SAMPLERS = pytest.mark.parametrize('sampler', [DefaultSampler, InfiniteSampler])


@SAMPLERS
def test_without_a_change_it_goes_on_where_it_stopped(sampler):
    whole = train(make(sampler=sampler), 30)
    loop = make(sampler=sampler)
    images = train(loop, 11)
    for iterations in (2, 17):
        loop, left_out = resumed(loop, sampler=sampler)
        assert not left_out
        images += train(loop, iterations)
    assert images == whole


@SAMPLERS
@pytest.mark.parametrize('batches', [(3, 2, 4), (4, 1, 6), (2, 6, 3)])
def test_other_batch_sizes_leave_no_image_out(sampler, batches):
    """Changed twice in the middle of passes, all passes have every image once."""
    loop, images = make(batch_size=batches[0], sampler=sampler), []
    for batch_size in batches:
        loop, left_out = resumed(loop, batch_size=batch_size, sampler=sampler) if images else (loop, False)
        assert not left_out
        images += train(loop, 36 // batch_size)  # one and a half passes
    for number in range(4):
        assert sorted(images[24 * number :][:24]) == list(range(24))


@SAMPLERS
def test_another_data_set_begins_with_a_new_pass(sampler):
    loop = make(sampler=sampler)
    before = train(loop, 11)
    loop, left_out = resumed(loop, anew=True, length=30, sampler=sampler)
    assert left_out
    images = train(loop, 4)
    loop, left_out = resumed(loop, length=30, sampler=sampler)  # interrupted once more
    images += train(loop, 16)
    assert not left_out and sorted(images[:30]) == sorted(images[30:]) == list(range(30))
    loop = make(sampler=sampler)
    train(loop, 11)
    same_length = train(resumed(loop, anew=True, sampler=sampler)[0], 8)
    assert sorted(same_length) == list(range(24)) and same_length != before[:24]  # in another order than at the beginning


def test_at_the_end_of_a_pass_nothing_is_left_out():
    loop = make()
    train(loop, 16)
    loop, left_out = resumed(loop, anew=True, length=30)
    assert not left_out and loop.place(16) == (2, 0) and sorted(train(loop, 10)) == list(range(30))


def test_checkpoints_of_earlier_versions():
    loop = make()
    assert not loop.go_to(11, None, anew=True) and loop.place(11) == (1, 3)


@pytest.mark.parametrize('images', [(16, 16), (16, 12)])
def test_processes_with_different_data_sets_are_named(monkeypatch, images):
    """Of the same number of images too."""
    loop = make()
    others = [(dict(images=count, fingerprint=str(rank)), f'host{rank}', f'/data{rank}/a.png') for rank, count in enumerate(images)]
    usual = (dict(images=16, fingerprint='0'), 'host2', '/data0/a.png')
    monkeypatch.setattr('mmcae.engine.loops.all_gather_object', lambda own: [*others, usual])
    expected = rf'process 1 \(host host1\) has {images[1]} images, first /data1/a.png; all others have 16, first /data0/a.png'
    with pytest.raises(DataError, match=expected):
        ExactLoop.check_same_data(loop)
    monkeypatch.setattr('mmcae.engine.loops.all_gather_object', lambda own: [usual, usual])
    ExactLoop.check_same_data(loop)
