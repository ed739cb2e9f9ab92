"""Save so that nothing is lost: whole files, every so many iterations, and when the machine asks to stop."""

import math
import os
import re
import time
from collections import deque
from contextlib import contextmanager
from pathlib import Path

from mmengine.dist import all_gather_object, barrier, is_main_process, master_only
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.runner import EpochBasedTrainLoop
from torch.distributed.fsdp import FSDPModule

from ...checkpoints import metadata_of
from ...checkpoints.saving import ATOMIC
from ...checkpoints.weights import METHOD
from ...compat import leave_distributed
from ...datasets.seeded_loader import leave_signals
from ...registry import HOOKS
from ...utils.errors import CheckpointError, ConfigError
from ...utils.files import write_file
from ...utils.wrappers import unwrapped
from ..loops import ExactLoop, IterBasedTrainLoop
from ..reader import make_plain
from ..reconcile import reconcile
from ..resume import RECORD, by_first_process, newest_of_last_run, outside, portable, record_start
from ..stop_signals import STOPPING, StopSignals

RECOVERY = 'recovery_{}.pth'
RECOVERIES = re.compile(r'recovery_(\d+)\.pth')
KEPT = 2  # recovery checkpoints; while a third is written, both are there


@HOOKS.register_module()
class CheckpointHook(MMEngineCheckpointHook):
    """mmengine's CheckpointHook for runs that are interrupted: `default_hooks=dict(checkpoint=dict(type='mmcae.CheckpointHook', ...))`.

    * Files appear complete or not at all.
    * Every `recovery_interval` iterations it saves `recovery_ITERATION.pth`, besides what `interval` asks for. The last two are kept, and
      none when the training has ended.
    * On SIGTERM (`scancel`), SIGINT (Ctrl-C), SIGHUP (a closed terminal, unless `nohup` has it ignored) and SIGUSR1, which Slurm is asked
      to send before the time limit, all processes finish the iteration, save such a file, and exit with code 128 + the signal's number:
      143, 130, 129, 138. Only after 138 a job goes on in the queue.
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
            self.backend_args = dict(backend=ATOMIC)
        self.recovery_interval = recovery_interval
        self.due = False
        self.recorded, self.unrecorded = None, None  # paths of the newest complete checkpoint, and of one that is still being written
        # After how many iterations the newest checkpoint was written that a training can go on from, and the newest of no recovery.
        self.saved, self.ordinary = None, None
        self.written = 0.0  # when the newest was, in seconds
        self.position = {}  # epochs and iterations of the one being written, which FlexibleRunner gets wrong after a validation
        self.signals = StopSignals()

    # ---------------------------------------------------------------- saving

    def before_run(self, runner):
        """With `resume=True` alone, have a Runner of mmengine's go on from the checkpoint that mmcae train would choose."""
        if runner._resume is True and runner._load_from is None and not runner._has_loaded:
            find = (newest_of_last_run, runner.work_dir, self.out_dir, self.backend_args)
            runner._load_from, passed_over = by_first_process(*find)
            for problem in passed_over:
                runner.logger.warning(f'Not resumed from: {problem}')

    def before_train(self, runner):
        super().before_train(runner)
        self.adopt_best(runner)
        self.adopt_newest(runner)
        self.record_start(runner)
        self.recoveries = deque(self.earlier_recoveries(runner.iter))
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
        self.signals.listen()
        if runner.val_loop is not None:
            leave_signals(runner.val_loop.dataloader)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        if self.recovery_interval and self.every_n_train_iters(runner, self.recovery_interval):
            self.due = True
        if self.unrecorded and not self.strategy_of(runner).writing:
            self.finish(runner)
        number = self.signals.of_all(runner.iter + 1)
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
        self.signals.restore()
        if self.ordinary == runner.iter:  # an ordinary checkpoint holds the end
            self.delete_recoveries(keep=0)
        if self.recorded and hasattr(self.strategy_of(runner), 'consolidate'):
            master_only(self.strategy_of(runner).consolidate)(self.recorded)

    def stop(self, runner, number):
        """End the process; our handlers stay, so that the same signal from another sender changes nothing of its exit code."""
        self.finish(runner)
        barrier()  # a launcher kills those that still write when the first one ends
        leave_distributed()
        runner.logger.warning(
            f'{STOPPING[number]}: stopped after iteration {runner.iter + 1} and saved it to {self.out_dir}. Go on with --resume'
        )
        raise SystemExit(128 + number)

    def _save_checkpoint_with_step(self, runner, step, meta):
        self.finish(runner)  # earlier ones are deleted now
        if self.max_keep_ckpts > 0 and step in list(self.keep_ckpt_ids)[:-1]:  # of before a resume that has changed how steps are counted
            self.keep_ckpt_ids.remove(step)
        with self.at(self.position or meta):
            super()._save_checkpoint_with_step(runner, step, meta)
            self.ordinary = self.position['iter']
        if self.save_optimizer:
            self.saved = self.ordinary
        self.record(runner, self.last_ckpt)

    def _save_best_checkpoint(self, runner, metrics):
        """As mmengine's, which deletes the best one so far before the better one is written; here it goes when that is there."""
        paths, names = self.best_paths()
        before = {name: paths.pop(name) for name in names}
        paths.update(dict.fromkeys(names))
        with self.at(dict(epoch=runner.epoch, iter=runner.iter)):
            super()._save_best_checkpoint(runner, metrics)
        replaced = []
        for name, path in before.items():
            if paths[name] is None:
                paths[name] = path
            elif path not in (None, paths[name]):
                replaced.append(path)
        if replaced and self.last_ckpt is None:  # else mmengine has saved that one again, after the best
            self.finish(runner)
        for path in replaced:
            self.delete(path)
            runner.logger.info(f'{path} is deleted: there is a better one')

    def best_paths(self):
        """Where mmengine keeps the paths of the best checkpoints, a dictionary, and under which names in it."""
        if hasattr(self, 'best_ckpt_path'):
            return vars(self), ['best_ckpt_path']
        paths = getattr(self, 'best_ckpt_path_dict', {})
        return paths, list(paths)

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
        if name in self.recoveries:  # a damaged one, which this one has replaced
            self.recoveries.remove(name)
        self.recoveries.append(name)
        self.delete_recoveries(keep=KEPT)

    def earlier_recoveries(self, iteration):
        """The recovery checkpoints in the folder, the newest last: in the order they were written, in a remote folder by iteration.

        Before all of them those beyond the iteration that the run goes on from: they are damaged, or were left by choice.
        """
        if not is_main_process():  # which alone deletes them
            return []
        if '://' not in str(self.out_dir):
            found = sorted(Path(self.out_dir).glob(RECOVERY.format('*')), key=lambda path: path.lstat().st_mtime_ns)
            names = [path.name for path in found]
        else:
            try:
                names = list(self.file_backend.list_dir_or_file(self.out_dir, list_dir=False, suffix='.pth'))
            except (NotImplementedError, FileNotFoundError):
                names = []
            names.sort(key=lambda name: (len(name), name))
        found = [match for match in map(RECOVERIES.fullmatch, names) if match]
        found.sort(key=lambda match: int(match[1]) > iteration, reverse=True)  # which keeps the order among equal ones
        return [match[0] for match in found]

    def delete_recoveries(self, keep):
        """Delete all but the newest."""
        while len(self.recoveries) > keep:
            self.delete(self.file_backend.join_path(self.out_dir, self.recoveries.popleft()))

    @master_only
    def delete(self, path):
        """Delete a checkpoint, if it is there."""
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
        write_file(file, portable(path, runner.work_dir))

    @master_only
    def record_start(self, runner):
        """Have `--resume` tell this run from an earlier one in the same folder, also where this one has saved nothing yet."""
        if '://' in str(self.out_dir):
            self.write_record(runner)  # by which alone a newest checkpoint is found there
            return
        begun_from = runner._load_from if runner._resume else None
        earlier = record_start(runner.work_dir, {runner.work_dir, self.out_dir}, begun_from)
        if earlier:
            newest, written = earlier
            self.written = max(self.written, written)  # whatever the clock says, its own checkpoints are newer
            runner.logger.warning(
                f'{newest} and older checkpoints are of an earlier run: this one goes on from {begun_from or "the beginning"}, writes over '
                'those of the same names, and --resume goes on from its own alone'
            )

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
        """Look in this folder for the best checkpoint, which may have been saved in another one; without it the next one is the best."""
        info = runner.message_hub.runtime_info
        paths, names = self.best_paths()
        found = {name: self.file_backend.join_path(self.out_dir, os.path.basename(info[name])) for name in info if is_path(name)}
        missing = by_first_process(lambda: [name for name, path in found.items() if not self.file_backend.exists(path)])
        for name, path in found.items():
            runner.message_hub.update_info(name, path)
            if name == 'last_ckpt':
                continue
            kept = 'best_ckpt_path' if name == 'best_ckpt' else name.removeprefix('best_ckpt_')
            if name in missing:
                for forgotten in (name, name.replace('ckpt', 'score', 1)):
                    runner.message_hub.pop_info(forgotten, None)
                runner.logger.warning(f'The best checkpoint so far, {path}, is not there: the next one counts as the best')
            if kept in names:
                paths[kept] = None if name in missing else path

    def adopt_newest(self, runner):
        """What is known of the newest checkpoint, where the training goes on from one of its own."""
        path = runner._load_from
        if runner._resume and path and not outside(path, [self.out_dir]):
            self.recorded, self.saved = path, runner.iter
            self.ordinary = None if RECOVERIES.fullmatch(os.path.basename(path)) else runner.iter

    def before_save_checkpoint(self, runner, checkpoint):
        loop = runner.train_loop
        self.written = max(time.time(), math.nextafter(self.written, math.inf))  # also where a clock was set back
        record = dict(
            model=class_of(runner.model), written=self.written, epoch_length=len(runner.train_dataloader), max_iters=runner.max_iters
        )
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
        model, meta, path = unwrapped(runner.model), checkpoint.get('meta', {}), str(runner._load_from)
        method = (meta.get(METHOD) or {}).get('name')
        if hasattr(model, 'check_method'):
            model.check_method(method, path)
        trained, built = meta.get('mmcae', {}).get('model') or (method and f'mmcae.{method}'), class_of(model)
        if runner._resume and trained not in (None, built):
            raise ConfigError(f'{path} is of {trained}, and the config trains {built}: resume with the config of {trained}')
        if runner._resume:
            self.written = meta.get('mmcae', {}).get('written', self.written)
            reconcile(runner, checkpoint, self.changed_data)


def is_path(name):
    """Whether mmengine's message hub has the path of a checkpoint under a name."""
    return name in ('last_ckpt', 'best_ckpt') or name.startswith('best_ckpt_')


def class_of(model):
    """The name of a model's class with that of its library: 'mmcae.MAE' is another one than 'mmpretrain.MAE'."""
    kind = next(kind for kind in type(unwrapped(model)).__mro__ if not issubclass(kind, FSDPModule))  # which FSDP2 puts in front
    return f'{kind.__module__.split(".")[0]}.{kind.__name__}'
