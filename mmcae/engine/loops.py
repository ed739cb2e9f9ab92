"""mmengine's training loops, made exact: a run that is interrupted and resumed does what the uninterrupted one would have done.

mmengine resumes at the beginning of an epoch, or reads all batches again, and its random numbers depend on what was done before. Here a
resumed loop goes to its next batch at once, and the random numbers of a step (dropped paths, dropout, mixing) depend on the seed, the rank
and the iteration alone, as those of an image do (mmcae/datasets/seeded_loader.py).
"""

from mmengine.dist import get_rank
from mmengine.runner import EpochBasedTrainLoop as MMEngineEpochBasedTrainLoop
from mmengine.runner import IterBasedTrainLoop as MMEngineIterBasedTrainLoop

from ..datasets.seeded_loader import SeededLoader, reseed
from ..registry import LOOPS
from ..utils.errors import ConfigError


class ExactLoop:
    """What both loops share: the seeded dataloader, and a seed for each step."""

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
    """mmengine's IterBasedTrainLoop that can be resumed exactly and at once. Takes the same arguments."""

    def run(self):
        """Train up to `max_iters`; to all hooks it is one epoch."""
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
        """From the next one on, pass after pass; a sampler that does not count epochs, such as InfiniteSampler, has one endless pass."""
        sampler = self.dataloader.batch_sampler.sampler
        finite = hasattr(sampler, 'epoch')
        epoch, done = divmod(self._iter, len(self.dataloader)) if finite else (0, self._iter)
        while True:
            if finite:
                sampler.set_epoch(epoch)
            self.dataloader.start_at(done)
            yield from self.dataloader
            if not finite:
                raise ConfigError(f'{type(sampler).__name__} has ended and counts no epochs: use InfiniteSampler or DefaultSampler')
            epoch, done = epoch + 1, 0
