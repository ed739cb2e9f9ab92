"""Check that the loss is finite."""

import json
from pathlib import Path

import torch
from mmengine.dist import get_rank

from ...registry import CHECKS
from ...utils.errors import ConfigError, TrainingError
from ...utils.files import write_file
from .base import Check


@CHECKS.register_module('loss')
class LossCheck(Check):
    """Stop when the loss is infinite or NaN in a number of consecutive iterations.

    The files of each such batch are written to `bad_loss_iter_N_rank_R.json` in the work dir, with the parts of the loss and the learning
    rates. The check runs before the iteration is saved, so the newest checkpoint is from before.

    Args:
        patience: Consecutive iterations. Defaults to 1: without loss scaling the first update by NaN destroys the weights.
        scaled_patience: The same for float16 with loss scaling, where torch's GradScaler skips such steps and a few are usual.

    Raises:
        ConfigError: One of them is not positive.
        TrainingError: While training. It names iteration, rank, parts of the loss, learning rate and the file.
    """

    def __init__(self, patience: int = 1, scaled_patience: int = 50):
        if patience < 1 or scaled_patience < 1:
            raise ConfigError(f'loss.patience={patience} and loss.scaled_patience={scaled_patience} must be at least 1')
        self.patience, self.scaled_patience = patience, scaled_patience
        self.in_a_row = 0

    def after_train_iter(self, runner, batch, outputs):
        loss = outputs.get('loss') if isinstance(outputs, dict) else None
        if loss is None or torch.isfinite(torch.as_tensor(loss)).all():
            self.in_a_row = 0
            return
        self.in_a_row += 1
        parts = {name: value.tolist() for name, value in outputs.items() if isinstance(value, torch.Tensor)}
        rates = sorted({group['lr'] for group in runner.optim_wrapper.param_groups})
        path = Path(runner.work_dir) / f'bad_loss_iter_{runner.iter + 1}_rank_{get_rank()}.json'
        content = dict(iteration=runner.iter + 1, epoch=runner.epoch + 1, rank=get_rank(), loss=parts, lr=rates, files=files_of(batch))
        write_file(path, json.dumps(content, indent=1))
        scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
        scaled = scaler is not None and scaler.is_enabled()
        patience = self.scaled_patience if scaled else self.patience
        what = (
            f'The loss is not finite at iteration {runner.iter + 1} (rank {get_rank()}, lr {rates[-1]:g}): '
            + ', '.join(f'{name} {value:g}' for name, value in parts.items() if isinstance(value, float))
            + f'. {path} lists the images'
        )
        if self.in_a_row < patience:
            runner.logger.warning(f'{what}. {"The step is skipped" if scaled else "Going on"} ({self.in_a_row} of {patience} in a row)')
            return
        raise TrainingError(
            f'{what}. Stopped after {self.in_a_row} in a row, before saving. Look at these images; then go on from the newest checkpoint '
            'with --resume and a lower learning rate (optim_wrapper.optimizer.lr), stronger clipping (optim_wrapper.clip_grad), or bfloat16'
        )


def files_of(batch) -> list[str]:
    """The image files of a batch; empty where its data samples have no `img_path`."""
    samples = batch.get('data_samples') if isinstance(batch, dict) else None
    return [str(sample.get('img_path')) for sample in samples or () if sample.get('img_path') is not None]
