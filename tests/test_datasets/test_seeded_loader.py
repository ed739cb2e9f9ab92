"""Batches that depend on seed, epoch and number alone."""

import errno
import random
from collections import Counter

import numpy as np
import pytest
import torch
from mmengine.dataset import ClassBalancedDataset, DefaultSampler, InfiniteSampler, RepeatDataset
from mmpretrain.datasets import RepeatAugSampler
from torch.utils.data import BatchSampler, ConcatDataset, DataLoader, Dataset, IterableDataset

from mmcae.datasets.seeded_loader import SeededLoader, reseed
from mmcae.datasets.source_batch_sampler import SourceBatchSampler
from mmcae.utils.errors import ConfigError, StorageError


class Numbers(Dataset):
    """Each item is its number and one random number of each generator; it knows which items were loaded in this process."""

    metainfo = dict(classes=['a'])

    def __init__(self, length=12):
        self.length, self.loaded = length, []

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        self.loaded.append(index)
        return torch.tensor([index, random.random(), np.random.rand(), torch.rand(()).item()], dtype=torch.float64)


def make(workers=0, batch_size=3, sampler=DefaultSampler, dataset=None, rank=0, world_size=1, seed=7, **settings):
    """A seeded loader as rank `rank` of `world_size` gets it."""
    dataset = dataset or Numbers()
    sampler = sampler(dataset, shuffle=True, seed=seed)
    sampler.rank, sampler.world_size = rank, world_size
    if isinstance(sampler, DefaultSampler):
        sampler.num_samples, sampler.total_size = len(dataset) // world_size, len(dataset)
    else:
        sampler.indices = sampler._indices_of_rank()
    batches = BatchSampler(sampler, batch_size, drop_last=True)
    return SeededLoader(DataLoader(dataset, batch_sampler=batches, num_workers=workers, **settings))


def take(loader, count):
    return [batch for batch, _ in zip(loader, range(count), strict=False)]


def test_workers_make_no_difference():
    expected = torch.stack(list(make()))
    torch.rand(5), random.random(), np.random.rand()
    for settings in (dict(workers=1), dict(workers=2, persistent_workers=True)):
        assert torch.equal(torch.stack(list(make(**settings))), expected)
    assert sorted(expected[..., 0].flatten().tolist()) == list(range(12))
    assert len(expected[..., 1:].unique()) == 36


def test_later_batches_are_the_same_and_earlier_ones_are_not_loaded():
    loader = make()
    expected = list(loader)
    loader.dataset.loaded.clear()
    loader.start_at(2)
    assert torch.equal(torch.stack(list(loader)), torch.stack(expected[2:]))
    assert len(loader.dataset.loaded) == 6
    assert len(list(loader)) == 4  # the next pass is whole
    loader.start_at(4)
    assert list(loader) == []


def test_epochs_and_seeds_differ():
    loader = make()
    first = torch.stack(list(loader))
    loader.batch_sampler.sampler.set_epoch(1)
    second = torch.stack(list(loader))
    assert not torch.equal(first[..., 0], second[..., 0])
    by_image = [{row[0]: row[1:] for row in epoch.flatten(0, 1).tolist()} for epoch in (first, second)]
    assert all(by_image[0][image] != by_image[1][image] for image in range(12))
    loader.batch_sampler.sampler.set_epoch(0)
    loader.batch_sampler.seed = 8
    assert torch.equal(torch.stack(list(loader)), torch.stack(list(make(seed=8))))


@pytest.mark.parametrize('sampler', [DefaultSampler, InfiniteSampler])
def test_two_ranks_get_what_one_gets_with_twice_the_batch(sampler):
    one = take(make(batch_size=4, sampler=sampler), 3)
    ranks = [take(make(batch_size=2, sampler=sampler, rank=rank, world_size=2), 3) for rank in range(2)]
    for i in range(3):
        both = torch.stack([ranks[0][i], ranks[1][i]], dim=1).flatten(0, 1)
        assert torch.equal(both, one[i])


class WithReplacement(DefaultSampler):
    """Draws from the first three images only, so that each comes often."""

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        drawn = torch.randint(3, (self.total_size,), generator=generator).tolist()
        return iter(drawn[self.rank :: self.world_size])


def make_repeating(sampler, rank=0, world_size=1, batch_size=6, workers=0, shuffle=True):
    sampler = sampler(Numbers(), shuffle=shuffle, seed=7)
    sampler.rank, sampler.world_size = rank, world_size
    if isinstance(sampler, RepeatAugSampler):
        sampler.num_samples = 12 * sampler.num_repeats // world_size
        sampler.num_selected_samples = 12 // world_size
    else:
        sampler.num_samples = 12 // world_size
    return SeededLoader(DataLoader(sampler.dataset, batch_sampler=BatchSampler(sampler, batch_size, True), num_workers=workers))


@pytest.mark.parametrize('sampler', [RepeatAugSampler, WithReplacement])
def test_an_image_that_comes_again_is_drawn_anew(sampler):
    """On one process and spread over several, which together get what one gets; with workers; and from any batch on."""
    one = torch.stack(list(make_repeating(sampler))).flatten(0, 1)
    assert len(one[:, 0].unique()) <= 4 and len(one[:, 1:].unique()) == 3 * len(one)
    for world_size in (2, 3):
        ranks = [torch.stack(list(make_repeating(sampler, rank, world_size, 6 // world_size))) for rank in range(world_size)]
        assert torch.equal(torch.stack(ranks, dim=2).flatten(0, 2), one)
    assert torch.equal(torch.stack(list(make_repeating(sampler, workers=2))).flatten(0, 1), one)
    resumed = make_repeating(sampler)
    resumed.start_at(1)
    assert torch.equal(torch.stack(list(resumed)).flatten(0, 1), one[6:])


class Labelled(Numbers):
    """The last of the images alone belongs to class 1."""

    def full_init(self):
        pass

    def get_cat_ids(self, index):
        return [int(index == self.length - 1)]


@pytest.mark.parametrize('repeated', [(RepeatDataset, dict(times=3)), (ClassBalancedDataset, dict(oversample_thr=0.9))])
def test_data_sets_that_repeat_images(repeated, monkeypatch):
    wrapper, settings = repeated
    monkeypatch.setattr('mmengine.dataset.dataset_wrapper.BaseDataset', Labelled)
    batches = torch.stack(list(make(dataset=wrapper(Labelled(), **settings)))).flatten(0, 1)
    counts = batches[:, 0].unique(return_counts=True)[1]
    assert counts.max() >= 3 and len(batches[:, 1:].unique()) == 3 * len(batches)


def test_an_endless_sampler_is_entered_anywhere():
    expected = take(make(sampler=InfiniteSampler), 30)  # over several passes
    loader = make(sampler=InfiniteSampler, workers=1)
    loader.start_at(25)
    assert torch.equal(torch.stack(take(loader, 5)), torch.stack(expected[25:]))


def test_batches_of_several_sources():
    def loader():
        dataset = ConcatDataset([Numbers(8), Numbers(6)])
        batches = SourceBatchSampler(DefaultSampler(dataset, seed=3), batch_size=2)
        return SeededLoader(DataLoader(dataset, batch_sampler=batches))

    whole, part = loader(), loader()
    part.start_at(3)
    assert torch.equal(torch.stack(list(part)), torch.stack(list(whole)[3:]))


def test_ranks_share_the_batches_of_several_sources():
    def loader(rank=0, world_size=1):
        sampler = DefaultSampler(ConcatDataset([Numbers(8), Numbers(16)]), seed=3)
        sampler.rank, sampler.world_size = rank, world_size
        return SeededLoader(DataLoader(sampler.dataset, batch_sampler=SourceBatchSampler(sampler, batch_size=4 // world_size)))

    ranks = [torch.stack(list(loader(rank, 2))) for rank in range(2)]
    assert torch.equal(torch.stack(ranks, dim=2).flatten(1, 2), torch.stack(list(loader())))


def test_nothing_is_loaded_before_the_first_batch_is_asked_for():
    loader = make()
    iterator = iter(loader)
    loader.start_at(1)
    next(iterator)
    assert len(loader.dataset.loaded) == 3


def test_the_training_keeps_its_random_numbers_to_itself():
    """Starting workers draws none of them."""
    torch.manual_seed(0)
    take(make(workers=1), 1)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))


class Flaky(Numbers):
    """Fails for each sample, as whatever libraries read with fails on a bad day, after drawing random numbers."""

    def __init__(self, times, error):
        super().__init__()
        self.times, self.error, self.tries = times, error, Counter()

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        self.tries[index] += 1
        if self.tries[index] <= self.times:
            raise self.error
        return sample


@pytest.mark.parametrize('error', [OSError(errno.ETIMEDOUT, 'Connection timed out'), MemoryError()], ids=repr)
def test_what_fails_for_a_moment_is_loaded_again_with_the_same_random_numbers(error, monkeypatch):
    assert torch.equal(torch.stack(list(make(dataset=Flaky(2, error)))), torch.stack(list(make())))
    monkeypatch.setenv('MMCAE_RETRY_SECONDS', '0')
    with pytest.raises(StorageError, match='sample [0-9]+ of Flaky cannot be read: .*--resume'):
        list(make(dataset=Flaky(10**9, error)))
    with pytest.raises(ValueError, match='a mistake'):
        list(make(dataset=Flaky(1, ValueError('a mistake'))))


def test_the_data_set_is_still_there():
    loader = make()
    assert loader.dataset.metainfo == dict(classes=['a']) and len(loader) == 4 and len(loader.dataset) == 12
    assert loader.batch_sampler.batch_size == 3 and loader.batch_sampler.drop_last
    assert loader.dataset[5][0] == 5  # without seeds
    with pytest.raises(AttributeError, match='colour'):
        _ = loader.dataset.colour


class Stream(IterableDataset):
    def __iter__(self):
        yield 1


@pytest.mark.parametrize('loader', [DataLoader(Stream()), DataLoader(Numbers(), batch_size=None)])
def test_streams_are_refused(loader):
    with pytest.raises(ConfigError, match='train_cfg.type'):
        SeededLoader(loader)


def test_reseed():
    def draw(*key):
        reseed(*key)
        return random.random(), np.random.rand(), torch.rand(()).item()

    assert draw(1, 'step', 0, 5) == draw(1, 'step', 0, 5)
    assert len({draw(*key)[i] for key in ((1, 2), (12,), (2, 1), (1, 'step', 2), (-1,), (2**70,)) for i in range(3)}) == 18


def test_generators_of_gpus_are_seeded_too(monkeypatch):
    """Those of MPS in the main process only."""
    seeded = []
    monkeypatch.setattr('torch.backends.mps.is_available', lambda: True)
    monkeypatch.setattr('torch.mps.manual_seed', seeded.append)
    for key in (1, 2, 1):
        reseed(key)
    assert len(seeded) == 3 and seeded[0] == seeded[2] != seeded[1]
    monkeypatch.setattr('mmcae.datasets.seeded_loader.get_worker_info', lambda: 'a worker')
    reseed(3)
    assert len(seeded) == 3
