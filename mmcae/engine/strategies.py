"""mmengine's strategies, by which its FlexibleRunner trains: their checkpoints made as safe as those of the plain Runner, and FSDP."""

import itertools
import os
import re
import time
from pathlib import Path

import torch
from mmengine._strategy import DDPStrategy as MMEngineDDPStrategy
from mmengine._strategy import FSDPStrategy as MMEngineFSDPStrategy
from mmengine._strategy import SingleDeviceStrategy as MMEngineSingleDeviceStrategy
from mmengine.device import get_device
from mmengine.dist import barrier, get_rank, get_world_size, is_main_process
from mmengine.optim import build_optim_wrapper
from mmengine.utils import apply_to
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from ..checkpoints.pieces import UNFINISHED, publish, remove, sync
from ..compat import has_accelerator
from ..registry import STRATEGIES
from ..utils.errors import CheckpointError, ConfigError
from ..utils.precision import set_matmul_precision
from .distributed import ddp_settings

WRAPPERS = re.compile(r'_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.')  # what FSDP puts into the names of parameters
PATIENCE = 10.0  # seconds for a network file system to show one process what another has written


class WholeCheckpoints:
    """Mixin of a strategy: a checkpoint, whether a file or a folder of pieces, appears whole or not at all, and resuming is strict.

    Goes before mmengine's strategy in the list of bases.

    Raises:
        CheckpointError: On saving, when a process does not see what the others have written. On loading, when the checkpoint is of
            another model; mmengine only warns when it resumes, and goes on with random weights.
    """

    resuming = False

    def _setup_env(self, *, float32_matmul_precision=None, **kwargs):
        set_matmul_precision(float32_matmul_precision)
        super()._setup_env(**kwargs)

    def save_checkpoint(self, filename, **kwargs):
        """Save by mmengine's strategy under another name; then give it its own."""
        if '://' in filename:  # the store's own matter
            super().save_checkpoint(filename, **kwargs)
            return
        path = Path(filename)
        partial = path.with_name(UNFINISHED)
        if is_main_process():
            path.parent.mkdir(parents=True, exist_ok=True)
            remove(partial)
        barrier()
        super().save_checkpoint(str(partial), **kwargs)
        own_piece = partial / f'rank{get_rank()}.pth'  # FSDP's
        if own_piece.exists():
            sync(own_piece)
        barrier()
        if is_main_process():
            publish(partial, path)
        barrier()
        self.check_seen(path)

    def check_seen(self, path):
        """Refuse to go on with a work dir that is another folder on another machine: the pieces would never come together."""
        began = time.monotonic()
        while not path.exists():
            if time.monotonic() - began > PATIENCE:
                raise CheckpointError(
                    f'{path}, written by the first process, is not seen by process {get_rank()}: set work_dir to a folder that all '
                    'machines share'
                )
            time.sleep(0.1)

    def located(self, filename):
        """A name that FlexibleRunner has read in `last_checkpoint`, which is relative to the work dir."""
        inside = os.path.join(self._work_dir, filename)
        return inside if not os.path.exists(filename) and os.path.exists(inside) else filename

    def resume(self, filename, **kwargs):
        """Continue a training, from a checkpoint of this very model."""
        self.resuming = True
        try:
            return super().resume(self.located(filename), **kwargs)
        finally:
            self.resuming = False

    def load_model_state_dict(self, state_dict, *, strict=False, **kwargs):
        """Load the model's state; all of it where a training is resumed."""
        try:
            super().load_model_state_dict(state_dict, strict=strict or self.resuming, **kwargs)
        except RuntimeError as error:
            raise other_model(error) from error


def other_model(error):
    """What to raise when a checkpoint's tensors are not those of the model; `error` is torch's."""
    text = ' '.join(str(error).split())
    return CheckpointError(f'The checkpoint belongs to another model than the config describes. {text[:400]}{" ..." * (len(text) > 400)}')


@STRATEGIES.register_module()
class SingleDeviceStrategy(WholeCheckpoints, MMEngineSingleDeviceStrategy):
    """mmengine's SingleDeviceStrategy with :class:`WholeCheckpoints`. Takes the same arguments."""


@STRATEGIES.register_module()
class DDPStrategy(WholeCheckpoints, MMEngineDDPStrategy):
    """mmengine's DDPStrategy with :class:`WholeCheckpoints` and :func:`.distributed.ddp_settings`. Takes the same arguments."""

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        self.model_wrapper = ddp_settings(self.model_wrapper)
        return super()._wrap_model(model)


@STRATEGIES.register_module()
class FSDPStrategy(WholeCheckpoints, MMEngineFSDPStrategy):
    """mmengine's FSDPStrategy, made for models of transformer blocks and for the rules of our optimizer constructor.

    * Each transformer block is one unit: gathered when it is computed, let go afterwards.
    * A part that is not trained at all (the tokenizer) is not sharded; every process has it whole.
    * The optimizer's groups are made before sharding, which leaves of every matrix a flat piece: the rule that only matrices are decayed
      would decay nothing.
    * The optimizer's state is saved and resumed by today's torch.
    * Pieces of checkpoints are plain tensors; torch's own are objects, and reading those can run code.
    * It also runs on CPUs over gloo, for tests.

    With `optim_wrapper.clip_grad` set `optim_wrapper.use_fsdp=True` of `mmcae.AmpOptimWrapper`: the norm is that of all pieces together.

    Args:
        **kwargs: For mmengine's FSDPStrategy. `state_dict_cfg='full'` writes files that everything else reads; 'local' (mmengine's default)
            a folder with one piece for each process, that as many processes can resume. `model_wrapper` has the arguments of torch's
            FullyShardedDataParallel.

    Raises:
        ConfigError: There is no process group, or `state_dict_cfg` is of a third kind.
        CheckpointError: On loading, see :class:`WholeCheckpoints`; or the checkpoint is of another kind or number of processes.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        if not self.distributed:
            raise ConfigError('FSDP shares a model out over processes: start them by tools/dist_train.sh or tools/slurm_train.sh')
        if self.state_dict_type not in (StateDictType.FULL_STATE_DICT, StateDictType.LOCAL_STATE_DICT):
            raise ConfigError(f"strategy.state_dict_cfg must be 'full' or 'local', not {self.state_dict_type.name}")
        if not has_accelerator():  # torch would free what it "offloads" from the CPU to the CPU, and then read it
            self.state_dict_config.offload_to_cpu = self.optim_state_dict_config.offload_to_cpu = False

    def prepare(self, model, *, optim_wrapper=None, **kwargs):
        """Build, shard and optimise a model; as in mmengine."""
        model = self.build_model(model)
        if isinstance(optim_wrapper, dict):
            optim_wrapper = build_optim_wrapper(model, optim_wrapper)
        return super().prepare(model, optim_wrapper=optim_wrapper, **kwargs)

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        from ..models.encoders.layers import Block
        from ..models.methods.regressor import CrossAttentionBlock

        self.shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}  # what a checkpoint of the model has
        frozen = [name for name, part in model.named_children() if not any(p.requires_grad for p in part.parameters())]
        for name in frozen:
            model.get_submodule(name).to(get_device())
        settings = dict(
            type='MMFullyShardedDataParallel',
            auto_wrap_policy=ModuleWrapPolicy({Block, CrossAttentionBlock}),
            ignored_modules=frozen,
        )
        if not has_accelerator():
            settings['device_id'] = 'cpu'
        self.model_wrapper = settings | dict(self.model_wrapper or {})
        return super()._wrap_model(model)

    def build_optim_wrapper(self, optim_wrapper, model):
        """Point an optimizer of the whole model to its sharded parameters."""
        sharded = {WRAPPERS.sub('', name): parameter for name, parameter in model.named_parameters()}
        for group in optim_wrapper.optimizer.param_groups:
            group['params'] = [sharded[self.id_to_name[id(parameter)]] for parameter in group['params']]
        return optim_wrapper

    # ---------------------------------------------------------------- what a checkpoint holds: all of it, or the pieces of this process

    def save_checkpoint(self, filename, *, extra_ckpt=None, callback=None, **kwargs):
        """Save a file or pieces; these with the shapes of the whole tensors, by which they can be put together."""
        if not self._is_full_state_dict():
            extra_ckpt = {**(extra_ckpt or {}), 'shapes': self.shapes}

        def then(checkpoint):
            if self._randomness.get('diff_rank_seed'):
                checkpoint['meta']['seed'] -= get_rank()  # which mmengine adds to it anew when it resumes
            if callback is not None:
                callback(checkpoint)

        super().save_checkpoint(filename, extra_ckpt=extra_ckpt, callback=then, **kwargs)

    def model_state_dict(self) -> dict:
        """The whole model on the first process, or this process's flat pieces of its tensors, by their names."""
        if self._is_full_state_dict():
            return super().model_state_dict()
        return {name: tensor.detach().cpu().clone() for name, tensor in self.tensors().items()}

    def load_model_state_dict(self, state_dict: dict, *, strict: bool = False, **kwargs):
        """The inverse."""
        if self._is_full_state_dict():
            super().load_model_state_dict(state_dict, strict=strict, **kwargs)
            return
        own = self.tensors()
        shapes, stored = ({name: tensor.shape for name, tensor in tensors.items()} for tensors in (own, state_dict))
        wrong = [name for name in shapes.keys() | stored.keys() if shapes.get(name) != stored.get(name)]
        if wrong:
            raise CheckpointError(
                f'The checkpoint belongs to another model than the config describes, or was sharded in another way: {len(wrong)} tensors '
                f'are missing or have another size ({", ".join(sorted(wrong)[:3])})'
            )
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state_dict[name])

    def tensors(self) -> dict:
        """This process's part of the model's parameters and buffers, flat where it is sharded."""
        tensors = itertools.chain(self.model.named_parameters(), self.model.named_buffers())
        named = {WRAPPERS.sub('', name): tensor for name, tensor in tensors}
        return {name: tensor for name, tensor in named.items() if name in self.shapes}

    def optim_state_dict(self) -> dict:
        """The optimizer's state, whole by the parameters' names or that of the pieces, and what the optimizer wrapper keeps besides it."""
        state = self.optim_wrapper.state_dict()
        if not self._is_full_state_dict():
            return apply_to(state, lambda value: hasattr(value, 'cpu'), lambda value: value.cpu())
        own = {name: value for name, value in state.items() if name not in ('state', 'param_groups')}
        return {**FullyShardedDataParallel.optim_state_dict(self.model, self.optim_wrapper.optimizer), **own}

    def load_optim_state_dict(self, state_dict: dict):
        """The inverse; mmengine's passes its arguments in the order of torch 2.0."""
        if self._is_full_state_dict():
            own = {name: value for name, value in state_dict.items() if name not in ('state', 'param_groups')}
            state = {name: state_dict[name] for name in ('state', 'param_groups')}
            state = FullyShardedDataParallel.optim_state_dict_to_load(self.model, self.optim_wrapper.optimizer, state)
            state_dict = {**state, **own}
        self.optim_wrapper.load_state_dict(state_dict)

    def load_checkpoint(self, filename, **kwargs):
        """Load a file, or this process's piece of a folder."""
        pieces = len(list(Path(filename).glob('rank*.pth'))) if '://' not in filename else 0
        if not self._is_full_state_dict() and pieces != get_world_size():
            raise CheckpointError(
                f'{filename} was written by {pieces} processes and can be read by as many, not by {get_world_size()}. With '
                "strategy.state_dict_cfg='full' the number may change"
            )
        return super().load_checkpoint(filename, **kwargs)
