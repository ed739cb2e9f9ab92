"""Batches from several sources whose images differ in size: every batch comes from one source."""

import math

import torch
from torch.utils.data import BatchSampler, ConcatDataset

from ..registry import DATA_SAMPLERS
from ..utils.errors import ConfigError


@DATA_SAMPLERS.register_module()
class SourceBatchSampler(BatchSampler):
    """Fill every batch from one source of a ``ConcatDataset``, so that sources may differ in image size and mask count.

    Images are shuffled within their source and the batches of all sources among each other. In distributed training all ranks are at
    the same source in the same step, see different images, and take the same number of steps.

    Goes into a dataloader as ``batch_sampler=dict(type='mmcae.SourceBatchSampler', batch_sizes=[...])``. The dataloader's ``sampler``
    only lends its data set, seed, ``shuffle`` and epoch: with mmengine's ``DefaultSampler`` one pass is one epoch, with
    ``InfiniteSampler`` (for iteration-based training, no pause between epochs) the passes follow each other without end.

    Args:
        sampler (DefaultSampler | InfiniteSampler): The dataloader's sampler over a ``ConcatDataset``; mmengine fills it in.
        batch_size (int): Images per batch and rank where ``batch_sizes`` is not given; mmengine fills in the dataloader's.
        batch_sizes (Sequence[int], optional): Images per batch and rank for each source, in the order of the ``ConcatDataset``. Equal
            numbers of tokens per batch keep the steps equally long. Defaults to None: ``batch_size`` for all.
        drop_last (bool): Leave out, in each epoch, the images of a source that do not fill a batch on all ranks (other images every
            epoch if shuffled). If False they make a smaller batch, and a few images are repeated where the ranks would get unequal
            shares. Defaults to True.

    Raises:
        ConfigError: The data set is no ``ConcatDataset``, the sampler is of another kind, ``batch_sizes`` does not match the sources or
            is not positive, or a source is too small for one batch.
    """

    def __init__(self, sampler, batch_size, batch_sizes=None, drop_last=True):
        dataset = sampler.dataset
        if not isinstance(dataset, ConcatDataset):
            raise ConfigError(f'SourceBatchSampler needs a ConcatDataset of sources, got {type(dataset).__name__}')
        if not hasattr(sampler, 'seed'):
            raise ConfigError(f'SourceBatchSampler needs a DefaultSampler or an InfiniteSampler, got {type(sampler).__name__}')
        self.sampler = sampler  # mmengine sets the epoch on it
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.source_sizes = [len(source) for source in dataset.datasets]
        self.batch_sizes = [batch_size] * len(self.source_sizes) if batch_sizes is None else list(batch_sizes)
        self._check()

    def _check(self):
        if len(self.batch_sizes) != len(self.source_sizes):
            raise ConfigError(f'batch_sizes {self.batch_sizes} must have one entry for each of the {len(self.source_sizes)} sources')
        for source, (size, batch_size) in enumerate(zip(self.source_sizes, self.batch_sizes, strict=True)):
            if batch_size < 1:
                raise ConfigError(f'batch_sizes must be positive, got {self.batch_sizes}')
            if self.drop_last and size < batch_size * self.sampler.world_size:
                raise ConfigError(
                    f'source {source} has {size} images, too few for one batch of {batch_size} on each of {self.sampler.world_size} '
                    'processes: lower its batch size or set drop_last=False'
                )

    def __iter__(self):
        if hasattr(self.sampler, 'epoch'):
            yield from self._epoch_batches(self.sampler.epoch)
        else:
            epoch = 0
            while True:
                yield from self._epoch_batches(epoch)
                epoch += 1

    def _epoch_batches(self, epoch):
        """The batches of this rank in one pass; only the images within a batch depend on the rank."""
        generator = torch.Generator()
        generator.manual_seed(self.sampler.seed + epoch)
        rank, world_size = self.sampler.rank, self.sampler.world_size
        batches, first_index = [], 0
        for size, batch_size in zip(self.source_sizes, self.batch_sizes, strict=True):
            order = (torch.randperm(size, generator=generator) if self.sampler.shuffle else torch.arange(size)) + first_index
            first_index += size
            whole = size - size % (batch_size * world_size)
            batches += order[:whole].view(-1, batch_size, world_size)[..., rank].tolist()
            rest = order[whole:]
            if len(rest) and not self.drop_last:
                share = math.ceil(len(rest) / world_size)
                wrapped = torch.arange(share * world_size) % len(rest)
                batches.append(rest[wrapped].view(share, world_size)[:, rank].tolist())
        if not self.sampler.shuffle:
            return batches
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]

    def __len__(self):
        """Batches of one rank in one epoch."""
        count = math.floor if self.drop_last else math.ceil
        world_size = self.sampler.world_size
        return sum(count(size / (batch_size * world_size)) for size, batch_size in zip(self.source_sizes, self.batch_sizes, strict=True))
