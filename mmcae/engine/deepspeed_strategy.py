"""DeepSpeed (ZeRO) by mmengine's FlexibleRunner, with checkpoints that hold plain data and can be resumed like any other."""

import json
import os

import torch
from mmengine._strategy import DeepSpeedStrategy as MMEngineDeepSpeedStrategy
from mmengine.device import get_device
from mmengine.dist import get_rank
from torch import nn

from ..checkpoints import read_checkpoint
from ..checkpoints.pickle_names import Record
from ..checkpoints.pieces import write_piece
from ..compat import require_deepspeed
from ..registry import STRATEGIES
from ..utils.errors import CheckpointError, ConfigError
from .reader import for_mmengine
from .strategies import WholeCheckpoints, other_model

OBJECT = 'deepspeed class'  # marks, in a checkpoint, a dict that stands for an object of DeepSpeed's


@STRATEGIES.register_module()
class DeepSpeedStrategy(WholeCheckpoints, MMEngineDeepSpeedStrategy):
    """mmengine's DeepSpeedStrategy, with mixed precision as elsewhere.

    * Checkpoints appear whole, and hold plain data: DeepSpeed itself runs whatever code they hold.
    * Hooks see them when they are saved and loaded, as with other strategies, and may change what is resumed.
    * With `gradient_accumulation_steps` mmcae.CheckpointHook waits for the update.

    Args:
        dtype: 'bfloat16' lets the model compute in mixed precision; parameters stay float32. (DeepSpeed's own `bf16` turns the whole model
            into bfloat16, the tokenizer too, whose targets change by it.)
        **kwargs: For mmengine's DeepSpeedStrategy, such as `zero_optimization`, `gradient_clipping`, `gradient_accumulation_steps`.

    Raises:
        ConfigError: An unknown dtype.
        DependencyError: DeepSpeed is missing, or of another version.
        CheckpointError: On loading, see :class:`WholeCheckpoints`; or the checkpoint is of another number of processes.
    """

    def __init__(self, dtype: str | None = None, **kwargs):
        require_deepspeed()
        if dtype not in (None, 'bfloat16'):
            raise ConfigError(f"strategy.dtype must be 'bfloat16' or None, got {dtype!r}")
        super().__init__(**kwargs)
        self.dtype = dtype
        self.config = json.loads(json.dumps(self.config))  # it goes into checkpoints, where mmengine's ConfigDict would be code

    def _wrap_model(self, model: nn.Module):
        if self.dtype:
            model.forward = torch.autocast(get_device(), torch.bfloat16)(model.forward)
        wrapper = super()._wrap_model(model)
        engine = wrapper.model
        engine.checkpoint_engine.save, engine.checkpoint_engine.load = save_plain, load_plain
        if hasattr(self, 'optim_wrapper'):
            steps = engine.gradient_accumulation_steps()
            self.optim_wrapper.should_update = lambda: engine.micro_steps % steps == 0
        return wrapper

    def save_checkpoint(self, filename, *, extra_ckpt=None, callback=None, **kwargs):
        """Save; the callback gets what is saved besides the states of model and optimizer, which DeepSpeed collects itself."""
        extra_ckpt = {'meta': {}, **(extra_ckpt or {})}
        if callback is not None:
            callback(extra_ckpt)
        super().save_checkpoint(filename, extra_ckpt=extra_ckpt, **kwargs)

    def load_checkpoint(self, filename, *, callback=None, **kwargs):
        """Load the model's weights."""
        checkpoint = self.load(filename, optimizer=False)
        if callback is not None:
            callback(checkpoint)
        return checkpoint

    def resume(self, filename, *, resume_optimizer=True, resume_param_scheduler=True, callback=None, **kwargs):
        """Continue a training.

        Args:
            filename (str): A folder.
            resume_optimizer (bool): Take over the optimizer's state.
            resume_param_scheduler (bool): Take over the schedules.
            callback (Callable[[dict], None], optional): Gets the checkpoint, with `optimizer` (settings of its groups) and
                `param_schedulers`, before they are taken over, and may change it. The optimizer has the config's settings meanwhile.
            **kwargs: Of mmengine's; without effect.
        """
        filename = self.located(filename)
        self.logger.info(f'Resume checkpoint from {filename}')
        optimizer = self.optim_wrapper.optimizer
        configured = [dict(group) for group in optimizer.param_groups]
        clipping = getattr(optimizer, 'clip_grad', None)
        checkpoint = self.load(filename, optimizer=resume_optimizer)
        stored = [{**group, 'params': list(range(len(group['params'])))} for group in optimizer.param_groups]
        update_groups(optimizer, configured)
        checkpoint['optimizer'] = dict(param_groups=stored, **checkpoint.pop('optim_wrapper', {}))
        if callback is not None:
            callback(checkpoint)
        state, schedulers = checkpoint.pop('optimizer'), checkpoint.pop('param_schedulers', None)
        if resume_optimizer:
            update_groups(optimizer, state['param_groups'])
            self.load_optim_state_dict(state)
        if resume_param_scheduler and schedulers and hasattr(self, 'param_schedulers'):
            self.load_scheduler_state_dict(schedulers)
        if clipping is not None and optimizer.clip_grad != clipping:
            self.logger.warning(f'From here on the config holds: strategy.gradient_clipping {optimizer.clip_grad} -> {clipping}')
            optimizer.clip_grad = clipping
        seed = checkpoint['meta'].get('seed')
        if seed is not None and self._randomness.get('diff_rank_seed') and self.model.zero_optimization_partition_weights():
            seed -= get_rank()  # in stage 3 each process reads a piece of its own, with its own seed, to which mmengine adds the rank anew
        if seed is not None and seed != self._randomness.get('seed'):
            self._randomness.update(seed=seed)
            self._set_randomness(**self._randomness)
        return checkpoint

    def load(self, filename, optimizer):
        """Have DeepSpeed load the model's state, and the optimizer's if asked for; returns the rest of the checkpoint."""
        from deepspeed.runtime.zero.utils import ZeRORuntimeException

        folder, name = os.path.split(os.path.abspath(filename))
        strict = not self.exclude_frozen_parameters
        try:
            _, checkpoint = self.model.load_checkpoint(folder, tag=name, load_optimizer_states=optimizer, load_module_strict=strict)
        except ZeRORuntimeException as error:
            raise CheckpointError(
                f'{filename} can be resumed by as many processes as have written it: {" ".join(str(error).split())}'
            ) from error
        except RuntimeError as error:
            if 'loading state_dict' not in str(error):
                raise
            raise other_model(error) from error
        if checkpoint is None or 'meta' not in checkpoint:
            raise CheckpointError(f'{filename} is no checkpoint of this strategy')
        return for_mmengine(checkpoint, filename)


def update_groups(optimizer, settings):
    """Give the groups of an optimizer other settings, in their order; parameters stay."""
    for group, new in zip(optimizer.param_groups, settings, strict=True):
        group.update({name: value for name, value in new.items() if name != 'params'})


# ---------------------------------------------------------------- pieces of checkpoints as plain data


def save_plain(content, path):
    """Write a piece of a checkpoint, with DeepSpeed's objects turned into dicts."""
    write_piece(to_plain(content), path)


def load_plain(path, map_location=None):
    """Read a piece of a checkpoint without running code from it."""
    names = [f'{kind.__module__}.{kind.__name__}' for kind in objects().values()]  # in checkpoints that DeepSpeed has written itself
    return from_plain(read_checkpoint(path, records=names))


def objects():
    """DeepSpeed's classes whose instances are in checkpoints, by name."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return {kind.__name__: kind for kind in (LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address)}


def to_plain(value):
    """A value with numbers and dicts in the place of DeepSpeed's objects; containers are copied, tensors are not."""
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(to_plain, value))
    if isinstance(value, objects()['ZeroStageEnum']):
        return int(value)
    if type(value) in objects().values():
        return {OBJECT: type(value).__name__, 'attributes': to_plain(vars(value))}
    return value


def from_plain(value):
    """The inverse of :func:`to_plain`, except for the stage of ZeRO, which DeepSpeed takes as a number too; and objects out of records."""
    if isinstance(value, Record) and value.name.startswith('deepspeed.'):
        name = value.name.rpartition('.')[2]
        return value.args[0] if name == 'ZeroStageEnum' else from_plain({OBJECT: name, 'attributes': value.attributes})
    if isinstance(value, dict) and OBJECT in value:
        kind = objects()[value[OBJECT]]
        made = kind.__new__(kind)
        vars(made).update(from_plain(value['attributes']))
        return made
    if isinstance(value, dict):
        return {key: from_plain(item) for key, item in value.items()}
    return type(value)(map(from_plain, value)) if type(value) in (list, tuple) else value
