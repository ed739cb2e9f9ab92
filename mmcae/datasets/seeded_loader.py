"""Batches that depend on the seed, the epoch and their number alone: not on workers, not on ranks, not on what was loaded before.

Each image is loaded with random numbers seeded by (seed, epoch, number of the batch, place in the batch), where the batch is that of all
processes together. So an image that comes more than once (RepeatAugSampler, class balancing, sampling with replacement) gets other random
numbers each time, whichever process loads it. A run that is resumed within an epoch goes straight to its next batch, the very batch that
the uninterrupted run would have got; nothing about random states has to be stored, and the number of workers may change. Two processes
get the images and views of one with twice the batch size.
"""

import hashlib
import os
import random
import signal
import threading
import time
from itertools import islice

import numpy as np
import torch
from mmengine.dist import get_dist_info
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from ..utils.errors import ConfigError
from ..utils.files import patiently
from .requested_batch import requested_batch

# What a DataLoader is made of, besides data set, batches and seeds.
SETTINGS = ('num_workers', 'collate_fn', 'pin_memory', 'timeout', 'multiprocessing_context', 'prefetch_factor', 'persistent_workers')
SETTINGS += ('pin_memory_device', 'in_order')


def reseed(*key):
    """Seed the generators of python, numpy and torch (also those of the GPUs in use) by what is to be done with them.

    Args:
        *key: Numbers and strings, such as (seed, 'step', rank, iteration). The same give the same random numbers, others unrelated ones.
    """
    seed = int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), 'little')
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # torch.manual_seed would record a stack trace each time in a process that never uses the GPU.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available() and get_worker_info() is None:  # a forked process must not touch it
        torch.mps.manual_seed(seed)


class SeededLoader(DataLoader):
    """The same batches as a dataloader of mmengine's, seeded as this module's docstring says, from any batch on.

    Its workers leave signals to the main process, which decides when to stop: Slurm and a terminal send them to all processes.

    Args:
        loader (DataLoader): Over a data set of known length, with a batch sampler; not used itself.

    Raises:
        ConfigError: It is over a stream, or has no batches.
    """

    def __init__(self, loader):
        if loader.batch_sampler is None or isinstance(loader.dataset, IterableDataset):
            raise ConfigError(
                "mmcae's training loops need numbered images in batches (no IterableDataset, and train_dataloader.batch_size): use "
                "mmengine's loops for streams, by train_cfg.type"
            )
        settings = {name: getattr(loader, name) for name in SETTINGS if hasattr(loader, name)}
        super().__init__(SeededDataset(loader.dataset), batch_sampler=SeededBatches(loader.batch_sampler), **settings)
        self.worker_init_fn = loader.worker_init_fn
        leave_signals(self)
        self.generator = torch.Generator()  # for the workers' first seeds, which else come out of the training's random numbers

    def start_at(self, batch):
        """Begin the next pass with this batch, counted from 0; those before it are not loaded."""
        self.batch_sampler.first = batch

    def __iter__(self):
        # A generator: workers start when the first batch is asked for, and not when a loop is built that is still to be resumed.
        try:
            yield from super().__iter__()
        except (EOFError, OSError):
            # When a worker has died, this is the end of a pipe to it. The signal of its death, at which torch tells which one and why, may
            # come a moment later.
            time.sleep(min(self.num_workers, 1))
            raise


class SeededBatches:
    """Batches of (image, what seeds it) in the order of a batch sampler.

    Samplers deal the images out to the processes in turn, so place p of process r is place `p * processes + r` of all.
    """

    def __init__(self, batch_sampler):
        self.batch_sampler, self.first, self.stream = batch_sampler, 0, 0
        self._seed = getattr(batch_sampler.sampler, 'seed', 0)
        rank, processes = get_dist_info()
        self.rank = getattr(batch_sampler.sampler, 'rank', rank)
        self.processes = getattr(batch_sampler.sampler, 'world_size', processes)

    @property
    def seed(self):
        """The run's seed: that of the sampler, which is the same on all ranks."""
        return self._seed

    @seed.setter
    def seed(self, seed):
        self._seed = self.sampler.seed = seed

    def begin_stream(self, number):
        """Have a sampler without epochs, before it has begun, give another order and other views than in its first stream, number 0."""
        self.stream, self.sampler.seed = number, self.seed + number

    def __iter__(self):
        first, self.first = self.first, 0
        epoch = getattr(self.sampler, 'epoch', self.stream)
        for number, batch in islice(enumerate(self.batch_sampler), first, None):
            places = range(self.rank, len(batch) * self.processes, self.processes)
            yield [(index, self.seed, epoch, number, place) for index, place in zip(batch, places, strict=True)]

    def __len__(self):
        return len(self.batch_sampler)

    def __getattr__(self, name):  # sampler, batch_size, drop_last
        if name == 'batch_sampler':  # not there yet while this is unpickled
            raise AttributeError(name)
        return getattr(self.batch_sampler, name)


class SeededDataset(Dataset):
    """A data set that seeds each of its images by what the batch sampler says; everything else is the data set's own.

    What fails for a reason that may pass, in whatever the data set reads with, is tried again by :func:`mmcae.utils.files.patiently`.
    """

    def __init__(self, dataset):
        self.dataset = dataset

    def __getitem__(self, key):
        index, *seeds = key if isinstance(key, tuple) else (key,)

        def load():
            if seeds:
                reseed(*seeds)
            return self.dataset[index]

        return patiently(load, f'sample {index} of {type(self.dataset).__name__}')

    def __getitems__(self, keys):
        with requested_batch(self.dataset, [key[0] if isinstance(key, tuple) else key for key in keys]):
            return [self[key] for key in keys]

    def __len__(self):
        return len(self.dataset)

    def __getattr__(self, name):
        if name == 'dataset':
            raise AttributeError(name)
        return getattr(self.dataset, name)


def leave_signals(loader):
    """Have the workers of a dataloader leave signals to the main process, which decides when to stop; whoever sends them to all processes.

    Args:
        loader (DataLoader): Whose workers have not started.
    """
    if not isinstance(loader.worker_init_fn, WorkerStart):
        loader.worker_init_fn = WorkerStart(loader.worker_init_fn)


class WorkerStart:
    """Prepares a worker process: interrupts are for the main process, and only that may end it.

    Args:
        then (callable, optional): The dataloader's own worker_init_fn.
    """

    def __init__(self, then=None):
        self.then, self.parent = then, os.getpid()

    def __call__(self, worker):
        for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        # torch ends its workers by SIGTERM, so it cannot be ignored whoever sends it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=self.end_with_parent, daemon=True).start()
        if self.then is not None:
            self.then(worker)

    def end_with_parent(self):
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != self.parent:
            pass
        os._exit(0)
