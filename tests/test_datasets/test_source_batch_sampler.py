"""Batches of one source each: sizes, coverage, order, several processes, and mmengine's way of building and seeding them."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from PIL import Image
from torch.utils.data import TensorDataset

from mmcae.datasets import SourceBatchSampler
from mmcae.utils.errors import ConfigError

SIZES = (50, 23, 31)
BATCHES = [8, 4, 3]


def concatenated(sizes=SIZES):
    return torch.utils.data.ConcatDataset([TensorDataset(torch.arange(n)) for n in sizes])


def sampler_of_rank(rank=0, world_size=1, epoch=0, shuffle=True, seed=3, **kwargs):
    sampler = DefaultSampler(concatenated(), shuffle=shuffle, seed=seed)
    sampler.rank, sampler.world_size = rank, world_size
    sampler.set_epoch(epoch)
    return SourceBatchSampler(sampler, batch_size=5, **kwargs)


def source_of(index):
    return int(np.searchsorted(np.cumsum(SIZES), index, side='right'))


@pytest.mark.parametrize('world_size', [1, 2, 3])
@pytest.mark.parametrize('drop_last', [True, False])
def test_every_image_once_an_epoch_up_to_what_is_dropped_or_repeated(world_size, drop_last):
    samplers = [sampler_of_rank(rank, world_size, batch_sizes=BATCHES, drop_last=drop_last) for rank in range(world_size)]
    batches = [list(sampler) for sampler in samplers]
    assert {len(b) for b in batches} == {len(sampler) for sampler in samplers} and len({len(b) for b in batches}) == 1
    for step in zip(*batches, strict=True):
        sources = {source_of(index) for batch in step for index in batch}
        assert len(sources) == 1  # of one batch, and of all ranks
        assert len({len(batch) for batch in step}) == 1
        assert len(step[0]) == BATCHES[sources.pop()] or not drop_last
    seen = Counter(index for rank in batches for batch in rank for index in batch)
    for source, (size, batch_size) in enumerate(zip(SIZES, BATCHES, strict=True)):
        counts = [n for index, n in seen.items() if source_of(index) == source]
        if drop_last:
            assert set(counts) == {1} and len(counts) == size - size % (batch_size * world_size)
        else:
            assert len(counts) == size and set(counts) <= {1, 2} and sum(counts) - size < world_size


def test_batches_are_shuffled_reproducible_and_new_every_epoch():
    def batches(**kwargs):
        return list(sampler_of_rank(batch_sizes=BATCHES, **kwargs))

    assert batches(epoch=0) == batches(epoch=0)
    assert batches(epoch=0) != batches(epoch=1)
    assert batches(epoch=0) != batches(epoch=0, seed=4)
    sources = [source_of(batch[0]) for batch in batches()]
    assert sources != sorted(sources) and set(sources) == {0, 1, 2}
    first = [index for batch in batches() for index in batch if source_of(index) == 0]
    assert first != sorted(first)


def test_other_images_are_dropped_in_other_epochs():
    dropped = [set(range(sum(SIZES))) - {i for b in sampler_of_rank(batch_sizes=BATCHES, epoch=e) for i in b} for e in range(8)]
    assert len(set.union(*dropped)) > max(map(len, dropped))


def test_without_shuffling_the_order_is_that_of_the_sources():
    indices = [i for batch in sampler_of_rank(shuffle=False, drop_last=False) for i in batch]
    assert indices == list(range(sum(SIZES)))


def test_one_batch_size_for_all_sources():
    sampler = sampler_of_rank()
    assert {len(batch) for batch in sampler} == {5} and len(sampler) == 10 + 4 + 6


def test_infinite_sampler_gives_one_epoch_after_the_other():
    endless = SourceBatchSampler(InfiniteSampler(concatenated(), seed=3), batch_size=5, batch_sizes=BATCHES)
    batches = iter(endless)
    for epoch in range(3):
        assert [next(batches) for _ in range(len(endless))] == list(sampler_of_rank(batch_sizes=BATCHES, epoch=epoch))


@pytest.mark.parametrize(
    'settings, message',
    [
        ({'batch_sizes': [8, 4]}, 'each of the 3 sources'),
        ({'batch_sizes': [8, 0, 3]}, 'positive'),
        ({'batch_sizes': [8, 24, 3]}, 'source 1 has 23 images'),
        ({'batch_sizes': [8, 12, 3], 'world_size': 2}, 'on each of 2 processes'),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        sampler_of_rank(**settings)


def test_needs_several_sources_and_a_seeded_sampler():
    with pytest.raises(ConfigError, match='ConcatDataset'):
        SourceBatchSampler(DefaultSampler(TensorDataset(torch.arange(9)), seed=0), 3)
    with pytest.raises(ConfigError, match='RandomSampler'):
        sampler = torch.utils.data.RandomSampler(concatenated())
        sampler.dataset = concatenated()
        SourceBatchSampler(sampler, 3)


@pytest.fixture
def two_sizes(tmp_path):
    for side, count in ((32, 20), (48, 12)):
        (tmp_path / str(side)).mkdir()
        for i in range(count):
            Image.fromarray(np.full((side, side, 3), i, np.uint8)).save(tmp_path / str(side) / f'{i:02d}.png')
    pipelines = {
        side: [
            dict(type='mmcae.LoadImage'),
            dict(type='mmcae.TwoViewCrop', size=side, second_size=side // 2),
            dict(type='mmcae.RandomMaskGenerator', grid=side // 8, ratio=0.5),
            dict(type='PackInputs'),
        ]
        for side in (32, 48)
    }
    sources = [
        dict(type='CustomDataset', data_root=str(tmp_path), data_prefix=str(side), with_label=False, pipeline=pipelines[side])
        for side in (32, 48)
    ]
    return dict(
        batch_size=8,
        num_workers=2,
        sampler=dict(type='DefaultSampler', shuffle=True),
        batch_sampler=dict(type='mmcae.SourceBatchSampler', batch_sizes=[8, 4]),
        collate_fn=dict(type='default_collate'),
        dataset=dict(type='ConcatDataset', datasets=sources),
    )


def test_dataloader_of_mmengine_gives_stacked_batches_of_each_size(two_sizes):
    init_default_scope('mmpretrain')
    loader = Runner.build_dataloader(two_sizes, seed=0)
    assert len(loader) == 2 + 3
    sizes = Counter()
    for batch in loader:
        first, second = batch['inputs']
        sizes[tuple(first.shape)] += 1
        assert second.shape[-1] * 2 == first.shape[-1] and first.dtype == second.dtype == torch.uint8
        assert all(sample.mask.shape == (first.shape[-1] // 8,) * 2 for sample in batch['data_samples'])
    assert sizes == {(8, 3, 32, 32): 2, (4, 3, 48, 48): 3}


def test_mmengine_reaches_the_epoch_through_the_batch_sampler(two_sizes):
    """mmengine's hook and loops set the epoch on `batch_sampler.sampler` where the loader's own sampler has none."""
    init_default_scope('mmpretrain')
    loader = Runner.build_dataloader({**two_sizes, 'num_workers': 0}, seed=0)
    assert not hasattr(loader.sampler, 'set_epoch')
    before = list(loader.batch_sampler)
    loader.batch_sampler.sampler.set_epoch(1)
    assert list(loader.batch_sampler) != before


def test_workers_and_seed_decide_the_masks(two_sizes):
    init_default_scope('mmpretrain')

    def masks(seed):
        random.seed(0)
        loader = Runner.build_dataloader(two_sizes, seed=seed)
        return [sample.mask for batch in loader for sample in batch['data_samples']]

    first, again, other = masks(0), masks(0), masks(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True) if a.shape == b.shape)
