"""Live progress of a training on a terminal."""

import logging
import sys
import time

from mmengine.hooks import Hook
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ...registry import HOOKS

REFRESH = 0.5  # seconds
LOSSES = 4  # how many losses fit into a line


@HOOKS.register_module()
class ShowProgress(Hook):
    """A line that stays below the log and shows step, images per second, time left and losses.

    `mmcae train` registers it where stdout is a terminal. It is for the first process. The lines that the LoggerHook prints about single
    steps go to the log file alone as long as the line is shown.

    Args:
        console: Where to draw.
    """

    priority = 'VERY_LOW'  # after the losses have been noted

    def __init__(self, console: Console | None = None):
        self.console = console or Console(file=sys.stdout)
        self.bar = None
        self.handlers = []

    def before_train(self, runner):
        columns = TextColumn('{task.description}'), BarColumn(bar_width=None), MofNCompleteColumn(), TimeRemainingColumn()
        self.bar = Progress(*columns, TextColumn('{task.fields[text]}'), console=self.console, refresh_per_second=4)
        self.task = self.bar.add_task('training', total=runner.max_iters, completed=runner.iter, text='')
        self.bar.start()
        for handler in runner.logger.handlers:
            if type(handler) is logging.StreamHandler:
                self.handlers.append((handler, handler.stream))
                handler.setStream(sys.stdout)  # which writes above the line from now on
                handler.addFilter(keep)
        self.images = (runner.cfg.train_dataloader.get('batch_size') or 1) * runner.world_size
        self.told = (time.perf_counter(), runner.iter)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        now, (before, steps) = time.perf_counter(), self.told
        done = runner.iter + 1
        if now - before < REFRESH and done < runner.max_iters:
            return
        self.told = (now, done)
        scalars = runner.message_hub.log_scalars
        losses = [name for name in scalars if name.startswith('train/') and 'loss' in name][:LOSSES]
        values = ' '.join(f'{name.removeprefix("train/")} {scalars[name].current():.4g}' for name in losses)
        rate = (done - steps) * self.images / max(now - before, 1e-9)
        epochs = f'epoch {runner.epoch + 1}/{runner.max_epochs}' if type(runner.train_loop).__name__.startswith('Epoch') else 'training'
        self.bar.update(self.task, completed=done, description=epochs, text=f'{rate:,.0f} images/s {values}')

    def before_val(self, runner):
        if self.bar:
            self.bar.update(self.task, description='validating')

    def after_train(self, runner):
        self.close()

    def close(self):
        """Leave the terminal as it was; also where the training has failed."""
        if self.bar is None:
            return
        self.bar.stop()
        for handler, stream in self.handlers:
            handler.removeFilter(keep)
            handler.setStream(stream)
        self.bar, self.handlers = None, []


def keep(record: logging.LogRecord) -> bool:
    """Whether a line of the log is shown above the progress."""
    return not record.getMessage().startswith(('Iter(train)', 'Epoch(train)'))
