"""mmengine's training loops, made exact: a run that is interrupted and resumed does what the uninterrupted one would have done.

mmengine resumes at the beginning of an epoch, or reads all batches again, and its random numbers depend on what was done before. Here a
resumed loop goes to its next batch at once, and the random numbers of a step (dropped paths, dropout, mixing) depend on the seed, the rank
and the iteration alone, as those of an image do (mmcae/datasets/seeded_loader.py).

The loops of validation and test are mmengine's with a choice of precision.
"""

import socket
from functools import cached_property

import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.runner import EpochBasedTrainLoop as MMEngineEpochBasedTrainLoop
from mmengine.runner import IterBasedTrainLoop as MMEngineIterBasedTrainLoop
from mmengine.runner import TestLoop as MMEngineTestLoop
from mmengine.runner import ValLoop as MMEngineValLoop
from mmengine.runner.loops import _update_losses

from ..datasets.seeded_loader import SeededLoader, reseed
from ..datasets.source_batch_sampler import SourceBatchSampler
from ..datasets.sources.fingerprint import fingerprint
from ..registry import LOOPS
from ..utils.errors import ConfigError, DataError
from ..utils.precision import autocast, check_dtype


class ExactLoop:
    """What both loops share: the seeded dataloader, a seed for each step, and that all processes have the same data set."""

    def __init__(self, runner, dataloader, *args, **kwargs):
        if isinstance(dataloader, dict):
            options = dict(seed=runner.seed, diff_rank_seed=runner._randomness_cfg.get('diff_rank_seed', False))
            dataloader = runner.build_dataloader(dataloader, **options)
        super().__init__(runner, SeededLoader(dataloader), *args, **kwargs)

    @property
    def seed(self):
        """What order, views and steps are drawn by, the same on all ranks; a resumed run takes it from its checkpoint."""
        return self.dataloader.batch_sampler.seed

    @seed.setter
    def seed(self, seed):
        self.dataloader.batch_sampler.seed = seed

    @cached_property
    def data(self):
        """What tells the data set from another: number of images (int) and fingerprint of their names and order (str)."""
        dataset = self.dataloader.dataset.dataset
        return dict(images=len(dataset), fingerprint=fingerprint(dataset))

    def check_same_data(self):
        """Refuse processes with different data sets: they would get different shares of different orders.

        Raises:
            DataError: In all processes; it names those that differ from most others.
        """
        info = getattr(self.dataloader.dataset, 'get_data_info', lambda _: {})(0)
        seen = all_gather_object((self.data, socket.gethostname(), info.get('img_path') if isinstance(info, dict) else None))
        kinds = [data for data, *_ in seen]
        usual = max(kinds, key=kinds.count)
        others = [
            f'process {rank} (host {host}) has {data["images"]:,} images, {"first " + path if path else "in another order"}'
            for rank, (data, host, path) in enumerate(seen)
            if data != usual
        ]
        if others:
            more = f' and {len(others) - 4} more' if len(others) > 4 else ''
            raise DataError(
                f'The processes have different data sets: {"; ".join(others[:4])}{more}; all others have {usual["images"]:,}, first '
                f'{seen[kinds.index(usual)][2]}. Look at their folders: every machine needs the same files under the same names'
            )

    def run(self):
        """Train, if all processes have the same data set."""
        self.check_same_data()
        return super().run()

    def run_iter(self, *args):
        reseed(self.seed, 'step', get_rank(), self._iter)
        super().run_iter(*args)


@LOOPS.register_module()
class EpochBasedTrainLoop(ExactLoop, MMEngineEpochBasedTrainLoop):
    """mmengine's EpochBasedTrainLoop that can be resumed exactly, within an epoch too. Takes the same arguments."""

    def run_epoch(self):
        """The rest of an epoch: all of it, or what is left of it on resuming."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        done = self._iter - self._epoch * len(self.dataloader)
        self.dataloader.start_at(done)
        for batch_idx, data_batch in enumerate(self.dataloader, done):
            self.run_iter(batch_idx, data_batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1


@LOOPS.register_module()
class IterBasedTrainLoop(ExactLoop, MMEngineIterBasedTrainLoop):
    """mmengine's IterBasedTrainLoop that can be resumed exactly and at once. Takes the same arguments.

    Iterations and passes over the data are counted apart: after another batch size, or other files, the number of iterations done does not
    tell any more which images the current pass has had.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.origin, self.first_pass = 0, 0  # at which iteration, counted as passes are now, which pass has begun

    @property
    def counts_epochs(self):
        """Whether the sampler ends with each pass; one that does not, such as InfiniteSampler, has one endless pass."""
        return hasattr(self.dataloader.batch_sampler.sampler, 'epoch')

    @property
    def pass_length(self):
        """Iterations in which all images are seen once; a whole number only where passes end."""
        batches = self.dataloader.batch_sampler
        if self.counts_epochs or isinstance(batches.batch_sampler, SourceBatchSampler):
            return len(self.dataloader)
        return len(self.dataloader.dataset) / (batches.batch_size * get_world_size())

    def place(self, iteration):
        """(number of the pass, batches done in it) after so many iterations."""
        done = iteration - self.origin
        passes, done = divmod(done, len(self.dataloader)) if self.counts_epochs else (0, done)
        return self.first_pass + passes, done

    def state(self):
        """What a checkpoint has to know of the passes."""
        return dict(origin=self.origin, first_pass=self.first_pass, pass_length=self.pass_length)

    def go_to(self, iteration, state, anew=False):
        """Continue a run where it stopped.

        Args:
            iteration (int): After which it was saved.
            state (dict | None): As it was saved; None by earlier versions, which did not count passes.
            anew (bool): With the next pass, and not with the rest of this one.

        Returns:
            bool: Whether some of a pass is left out for that.
        """
        if not state:
            return False
        done = iteration - state['origin']
        passes, done = divmod(done, state['pass_length']) if self.counts_epochs else (0, done)
        left_out = anew and done > 0
        # The same share of the pass, should it have another length.
        done = 0 if left_out else int(done * self.pass_length / state['pass_length'])
        self.origin, self.first_pass = iteration - done, state['first_pass'] + int(passes) + left_out
        return left_out

    def run(self):
        """Train up to `max_iters`; to all hooks it is one epoch."""
        self.check_same_data()
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        batches = self.batches()
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(next(batches))
            self._decide_current_val_interval()
            due = self._iter % self.val_interval == 0 or self._iter == self._max_iters
            if self.runner.val_loop is not None and self._iter >= self.val_begin and due:
                self.runner.val_loop.run()
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model

    def batches(self):
        """From the next one on, pass after pass."""
        sampler = self.dataloader.batch_sampler.sampler
        number, done = self.place(self._iter)
        if not self.counts_epochs:
            self.dataloader.batch_sampler.begin_stream(number)
        while True:
            if self.counts_epochs:
                sampler.set_epoch(number)
            self.dataloader.start_at(done)
            yield from self.dataloader
            if not self.counts_epochs:
                raise ConfigError(f'{type(sampler).__name__} has ended and counts no epochs: use InfiniteSampler or DefaultSampler')
            number, done = number + 1, 0


# ---------------------------------------------------------------- validation and test


class InPrecision:
    """Mixin of a validation or test loop: the model predicts in a lower precision, metrics are computed outside of it.

    Args:
        runner, dataloader, evaluator: As in mmengine.
        dtype (str, optional): 'float32', 'bfloat16' or 'float16'; None for what the machine is fast in. Defaults to 'float32'. See
            :func:`mmcae.utils.precision.autocast`.

    Raises:
        ConfigError: An unknown dtype.
    """

    def __init__(self, runner, dataloader, evaluator, dtype='float32'):
        check_dtype(dtype, type(self).__name__)
        super().__init__(runner, dataloader, evaluator)
        self.dtype = dtype

    @torch.no_grad()
    def run_iter(self, idx, data_batch):
        """Predict and score one batch."""
        self.runner.call_hook(f'before_{self.mode}_iter', batch_idx=idx, data_batch=data_batch)
        with autocast(self.dtype):
            outputs = getattr(self.runner.model, f'{self.mode}_step')(data_batch)
        outputs, losses = _update_losses(outputs, getattr(self, f'{self.mode}_loss'))
        setattr(self, f'{self.mode}_loss', losses)
        self.evaluator.process(data_samples=outputs, data_batch=data_batch)
        self.runner.call_hook(f'after_{self.mode}_iter', batch_idx=idx, data_batch=data_batch, outputs=outputs)


@LOOPS.register_module()
class ValLoop(InPrecision, MMEngineValLoop):
    """mmengine's ValLoop with a choice of precision, see :class:`InPrecision`."""

    mode = 'val'


@LOOPS.register_module()
class TestLoop(InPrecision, MMEngineTestLoop):
    """mmengine's TestLoop with a choice of precision, see :class:`InPrecision`."""

    mode = 'test'
