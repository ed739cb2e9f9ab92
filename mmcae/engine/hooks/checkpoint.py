"""Save so that nothing is lost: whole files, every so many iterations, and when the machine asks to stop."""

import fnmatch
import os
import signal
import threading
import time
from collections import deque
from contextlib import contextmanager
from pathlib import Path

import torch
from mmengine.dist import all_gather_object, all_reduce, barrier, get_comm_device, master_only
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.runner import EpochBasedTrainLoop

from ...checkpoints import metadata_of
from ...checkpoints.weights import METHOD
from ...compat import leave_distributed
from ...registry import HOOKS
from ...utils.errors import CheckpointError, ConfigError
from ...utils.files import write_file
from ...utils.wrappers import unwrapped
from ..loops import ExactLoop, IterBasedTrainLoop
from ..reader import make_plain
from ..reconcile import reconcile
from ..resume import RECORD, by_first_process, newest_checkpoint

RECOVERY = 'recovery_{}.pth'
KEPT = 2  # recovery checkpoints; while a third is written, both are there
STOPPING = {number: number.name for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
EXCHANGE = 10  # iterations
IMPATIENT = 2.0  # seconds after which a second Ctrl-C is meant; torchrun passes the first one on a second time


@HOOKS.register_module()
class CheckpointHook(MMEngineCheckpointHook):
    """mmengine's CheckpointHook for runs that are interrupted: `default_hooks=dict(checkpoint=dict(type='mmcae.CheckpointHook', ...))`.

    * Files appear complete or not at all.
    * Every `recovery_interval` iterations it saves `recovery_ITERATION.pth`, besides what `interval` asks for. The last two are kept, and
      none when the training has ended.
    * On SIGTERM (`scancel`), SIGINT (Ctrl-C) and SIGUSR1, which Slurm is asked to send before the time limit, all processes finish the
      iteration, save such a file, and exit with code 128 + the signal's number: 143, 130, 138. Only after 138 a job goes on in the queue.
    * On resuming, order and views of the images go on where they stopped, and what the config says about learning rates and length holds;
      changes are logged (mmcae/engine/reconcile.py).

    With gradient accumulation it waits for the update, because a checkpoint holds no gradients.

    Args:
        recovery_interval (int, optional): Iterations. Defaults to None: only on signals.
        changed_data (str): Where a run goes on that was interrupted within an epoch and is resumed with another data set (files have come,
            gone, or changed their order): 'next_epoch', because it is not known which images the rest of the epoch would be, or
            'continue' after the same share of it. The last epoch is continued in any case. Defaults to 'next_epoch'.
        **kwargs: Of mmengine's CheckpointHook. `max_keep_ckpts` counts the one being written, so it is 2 at least, or -1 for all.

    Raises:
        ConfigError: `recovery_interval` is not positive, `changed_data` is neither, `max_keep_ckpts` is 1, or an EpochBasedTrainLoop of
            mmengine, which cannot resume within an epoch.
        CheckpointError: On resuming, processes have loaded different checkpoints.
        SystemExit: While training, after a signal.
    """

    def __init__(self, *args, recovery_interval=None, changed_data='next_epoch', **kwargs):
        super().__init__(*args, **kwargs)
        if changed_data not in ('next_epoch', 'continue'):
            raise ConfigError(f"changed_data={changed_data!r} must be 'next_epoch' or 'continue'")
        self.changed_data = changed_data
        if recovery_interval is not None and recovery_interval < 1:
            raise ConfigError(f'recovery_interval={recovery_interval} must be a positive number of iterations, or None')
        if self.max_keep_ckpts == 1:
            raise ConfigError('max_keep_ckpts=1 would delete the only checkpoint before the next is written: set 2 or more, or -1 for all')
        if self.backend_args is None and self.file_client_args is None and '://' not in str(self.out_dir):
            self.backend_args = dict(backend='mmcae.atomic')
        self.recovery_interval = recovery_interval
        self.due = False
        self.recorded, self.unrecorded = None, None  # paths of the newest complete checkpoint, and of one that is still being written
        self.saved = None  # after how many iterations the newest checkpoint was written
        self.position = {}  # epochs and iterations of the one being written, which FlexibleRunner gets wrong after a validation
        self.signal, self.asked, self.agreed = 0, None, 0
        self.handlers = {}

    # ---------------------------------------------------------------- saving

    def before_run(self, runner):
        """With `resume=True` alone, have a Runner of mmengine's go on from the checkpoint that mmcae train would choose."""
        if runner._resume is True and runner._load_from is None and not runner._has_loaded:
            find = (newest_checkpoint, runner.work_dir, self.out_dir, self.backend_args)
            runner._load_from, passed_over = by_first_process(*find)
            for problem in passed_over:
                runner.logger.warning(f'Not resumed from: {problem}')

    def before_train(self, runner):
        super().before_train(runner)
        self.adopt_best(runner)
        self.recoveries = deque(self.earlier_recoveries())
        loop = runner.train_loop
        if isinstance(loop, EpochBasedTrainLoop) and not isinstance(loop, ExactLoop):
            raise ConfigError(
                "mmcae.CheckpointHook saves within epochs, where mmengine's loop cannot go on: set "
                "train_cfg.type='mmcae.EpochBasedTrainLoop' (and no train_cfg.by_epoch)"
            )
        positions = all_gather_object((runner.epoch, runner.iter))
        if len(set(positions)) > 1:
            raise CheckpointError(
                f'The processes have loaded different checkpoints, after (epochs, iterations) {sorted(set(positions))}: they see different '
                'folders. Name one that all can read: --resume CHECKPOINT'
            )
        if threading.current_thread() is threading.main_thread():
            self.handlers = {number: signal.signal(number, self.on_signal) for number in STOPPING}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        if self.recovery_interval and self.every_n_train_iters(runner, self.recovery_interval):
            self.due = True
        if self.unrecorded and not self.strategy_of(runner).writing:
            self.finish(runner)
        number = self.signal_of_all(runner)
        # Between two updates the gradients so far would be lost.
        updated = getattr(runner.optim_wrapper, 'should_update', lambda: True)()
        if not (self.due or number) or not updated:
            return
        if self.saved != runner.iter + 1:
            self.save_recovery(runner)
        self.due = False
        if number:
            self.stop(runner, number)

    def after_train(self, runner):
        self.finish(runner)
        super().after_train(runner)
        self.restore_handlers()
        if self.saved == runner.iter:  # an ordinary checkpoint holds the end
            self.delete_recoveries(keep=0)
        if self.last_ckpt and hasattr(self.strategy_of(runner), 'consolidate'):
            master_only(self.strategy_of(runner).consolidate)(self.last_ckpt)

    def _save_checkpoint_with_step(self, runner, step, meta):
        self.finish(runner)  # earlier ones are deleted now
        with self.at(self.position or meta):
            super()._save_checkpoint_with_step(runner, step, meta)
            self.saved = self.position['iter']
        self.record(runner, self.last_ckpt)

    def _save_best_checkpoint(self, runner, metrics):
        with self.at(dict(epoch=runner.epoch, iter=runner.iter)):
            super()._save_best_checkpoint(runner, metrics)

    @contextmanager
    def at(self, position):
        """Have what is saved say that so many epochs and iterations are done."""
        before, self.position = self.position, dict(position)
        try:
            yield
        finally:
            self.position = before

    def save_recovery(self, runner):
        """Save what --resume needs, within an epoch or not."""
        self.finish(runner)
        meta = dict(epoch=runner.epoch, iter=runner.iter + 1)
        name = RECOVERY.format(meta['iter'])
        runner.save_checkpoint(self.out_dir, name, meta=meta, by_epoch=False, backend_args=self.backend_args)
        self.saved = meta['iter']
        self.record(runner, self.file_backend.join_path(self.out_dir, name))
        self.recoveries.append(name)
        self.delete_recoveries(keep=KEPT)

    def earlier_recoveries(self):
        """The recovery checkpoints in the folder, the newest last: in the order they were written, in a remote folder by iteration."""
        if '://' not in str(self.out_dir):
            found = Path(self.out_dir).glob(RECOVERY.format('*'))
            return [path.name for path in sorted(found, key=lambda path: path.stat().st_mtime_ns)]
        try:
            names = self.file_backend.list_dir_or_file(self.out_dir, list_dir=False, suffix='.pth')
            return sorted(fnmatch.filter(names, RECOVERY.format('*')), key=lambda name: (len(name), name))
        except (NotImplementedError, FileNotFoundError):
            return []

    @master_only
    def delete_recoveries(self, keep):
        """Delete all but the newest."""
        while len(self.recoveries) > keep:
            path = self.file_backend.join_path(self.out_dir, self.recoveries.popleft())
            if self.file_backend.isdir(path):  # one with a piece for each process
                self.file_backend.rmtree(path)
            elif self.file_backend.exists(path):
                self.file_backend.remove(path)

    # ---------------------------------------------------------------- names that hold wherever the folder is

    def record(self, runner, path):
        """Write which checkpoint is the newest; in the work dir itself by its name alone, so that a copy of the folder has its own.

        One that a strategy is still writing becomes the newest when it is complete.
        """
        self.unrecorded = path if getattr(self.strategy_of(runner), 'saving', None) else None
        if self.unrecorded is None:
            self.recorded = path
        self.write_record(runner)

    @master_only
    def write_record(self, runner):
        file, path = Path(runner.work_dir) / RECORD, self.recorded
        if path is None:
            file.unlink(missing_ok=True)  # mmengine's, of a checkpoint that is not there yet
            return
        if '://' not in path:
            path = os.path.relpath(path, runner.work_dir) if self.out_dir == runner.work_dir else os.path.abspath(path)
        write_file(file, path)

    @staticmethod
    def strategy_of(runner):
        """The strategy of a FlexibleRunner, None of a Runner."""
        return getattr(runner, 'strategy', None)

    def finish(self, runner):
        """Wait for a checkpoint that a strategy writes in the background, and record it."""
        if hasattr(self.strategy_of(runner), 'finish'):
            self.strategy_of(runner).finish()
        if self.unrecorded is not None:
            self.record(runner, self.unrecorded)

    def adopt_best(self, runner):
        """Where the best checkpoint was saved in another folder, look for it in this one: mmengine deletes it when a better one comes."""
        info = runner.message_hub.runtime_info
        for name in [name for name in info if is_path(name)]:
            path = self.file_backend.join_path(self.out_dir, os.path.basename(info[name]))
            runner.message_hub.update_info(name, path)
            if name == 'best_ckpt':
                self.best_ckpt_path = path
            elif name != 'last_ckpt' and hasattr(self, 'best_ckpt_path_dict'):
                self.best_ckpt_path_dict[name.removeprefix('best_ckpt_')] = path

    def before_save_checkpoint(self, runner, checkpoint):
        loop = runner.train_loop
        record = dict(written=time.time(), epoch_length=len(runner.train_dataloader), max_iters=runner.max_iters)
        if isinstance(loop, ExactLoop):
            record.update(seed=loop.seed, data=loop.data)
        if isinstance(loop, IterBasedTrainLoop):
            record['position'] = loop.state()
        info = checkpoint['message_hub']['runtime_info']
        info.update({name: os.path.basename(path) for name, path in info.items() if is_path(name)})
        make_plain(checkpoint)
        epochs = runner.iter // max(1, len(runner.train_dataloader))
        checkpoint['meta'].update(self.position, mmcae=record, **metadata_of(runner.model, epochs))

    def after_load_checkpoint(self, runner, checkpoint):
        model, method = unwrapped(runner.model), checkpoint.get('meta', {}).get(METHOD) or {}
        if hasattr(model, 'check_method'):
            model.check_method(method.get('name'), str(runner._load_from))
        if runner._resume:
            reconcile(runner, checkpoint, self.changed_data)

    # ---------------------------------------------------------------- signals

    def on_signal(self, number, frame):
        """Remember the signal; what is in work is finished first."""
        if not self.signal:
            self.signal, self.asked = number, time.monotonic()
            print(f'{STOPPING[number]}: saving after this iteration.', flush=True)
        elif number == signal.SIGINT and time.monotonic() - self.asked > IMPATIENT:
            self.restore_handlers()
            raise KeyboardInterrupt

    def signal_of_all(self, runner):
        """The number of the signal that any process has got, 0 for none: all of them have to stop after the same iteration.

        Processes that talk through GPUs ask each other every `EXCHANGE` iterations, because the answer has to be waited for.
        """
        if runner.world_size == 1:
            return self.signal
        if not self.agreed and (get_comm_device().type == 'cpu' or (runner.iter + 1) % EXCHANGE == 0):
            number = torch.tensor(int(self.signal))
            all_reduce(number, 'max')
            self.agreed = int(number)
        return self.agreed

    def stop(self, runner, number):
        self.finish(runner)
        barrier()  # a launcher kills those that still write when the first one ends
        leave_distributed()
        self.restore_handlers()
        name = STOPPING[number]
        runner.logger.warning(f'{name}: stopped after iteration {runner.iter + 1} and saved it to {self.out_dir}. Go on with --resume')
        raise SystemExit(128 + number)

    def restore_handlers(self):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}


def is_path(name):
    """Whether mmengine's message hub has the path of a checkpoint under a name."""
    return name in ('last_ckpt', 'best_ckpt') or name.startswith('best_ckpt_')
