"""What mmengine's FlexibleRunner needs to share a model out over processes: FSDP and DeepSpeed."""

import json

import torch
from mmengine._strategy import DeepSpeedStrategy as MMEngineDeepSpeedStrategy
from mmengine._strategy import FSDPStrategy as MMEngineFSDPStrategy
from mmengine.device import get_device
from mmengine.optim import build_optim_wrapper
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from ..checkpoints import read_checkpoint
from ..compat import has_accelerator, require_deepspeed
from ..registry import STRATEGIES
from ..utils.errors import ConfigError

SHARDED = '_fsdp_wrapped_module.'  # what FSDP puts into the names of parameters


@STRATEGIES.register_module()
class FSDPStrategy(MMEngineFSDPStrategy):
    """mmengine's FSDPStrategy, made for models of transformer blocks and for the rules of our optimizer constructor.

    * Each transformer block is one unit: gathered when it is computed, let go afterwards.
    * A part that is not trained at all (the tokenizer) is not sharded; every process has it whole.
    * The optimizer's groups are made before sharding, which leaves of every matrix a flat piece: the rule that only matrices are decayed
      would decay nothing.
    * The optimizer's state is saved and resumed by today's torch.
    * It also runs on CPUs over gloo, for tests.

    With `optim_wrapper.clip_grad` set `optim_wrapper.use_fsdp=True` of `mmcae.AmpOptimWrapper`: the norm is that of all pieces together.

    Args:
        **kwargs: For mmengine's FSDPStrategy: `state_dict_cfg='full'` writes checkpoints that everything else reads; `model_wrapper` has
            the arguments of torch's FullyShardedDataParallel.

    Raises:
        ConfigError: There is no process group.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        if not self.distributed:
            raise ConfigError('FSDP shares a model out over processes: start them by tools/dist_train.sh or tools/slurm_train.sh')
        if not has_accelerator():  # torch would free what it "offloads" from the CPU to the CPU, and then read it
            self.state_dict_config.offload_to_cpu = self.optim_state_dict_config.offload_to_cpu = False

    def prepare(self, model, *, optim_wrapper=None, **kwargs):
        """Build, shard and optimise a model; as in mmengine."""
        model = self.build_model(model)
        if isinstance(optim_wrapper, dict):
            optim_wrapper = build_optim_wrapper(model, optim_wrapper)
        return super().prepare(model, optim_wrapper=optim_wrapper, **kwargs)

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        from ..models.layers import Block
        from ..models.regressor import CrossAttentionBlock

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
        sharded = {name.replace(SHARDED, ''): parameter for name, parameter in model.named_parameters()}
        for group in optim_wrapper.optimizer.param_groups:
            group['params'] = [sharded[self.id_to_name[id(parameter)]] for parameter in group['params']]
        return optim_wrapper

    def optim_state_dict(self) -> dict:
        """The whole optimizer state by the parameters' names, and what the optimizer wrapper keeps besides it."""
        own = {name: value for name, value in self.optim_wrapper.state_dict().items() if name not in ('state', 'param_groups')}
        return {**FullyShardedDataParallel.optim_state_dict(self.model, self.optim_wrapper.optimizer), **own}

    def load_optim_state_dict(self, state_dict: dict):
        """The inverse; mmengine's passes its arguments in the order of torch 2.0."""
        own = {name: value for name, value in state_dict.items() if name not in ('state', 'param_groups')}
        state = {name: state_dict[name] for name in ('state', 'param_groups')}
        state = FullyShardedDataParallel.optim_state_dict_to_load(self.model, self.optim_wrapper.optimizer, state)
        self.optim_wrapper.load_state_dict({**state, **own})


@STRATEGIES.register_module()
class DeepSpeedStrategy(MMEngineDeepSpeedStrategy):
    """mmengine's DeepSpeedStrategy, with mixed precision as elsewhere, and checkpoints that are plain data.

    Args:
        dtype: 'bfloat16' lets the model compute in mixed precision; parameters stay float32. (DeepSpeed's own `bf16` turns the whole model
            into bfloat16, the tokenizer too, whose targets change by it.)
        **kwargs: For mmengine's DeepSpeedStrategy, such as `zero_optimization`, `gradient_clipping`, `gradient_accumulation_steps`.

    Raises:
        DependencyError: DeepSpeed is missing, or of another version.
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
        wrapper.model.checkpoint_engine.load = load_plain
        return wrapper

    def resume(self, filename, **kwargs):
        """Continue from a checkpoint of this strategy; what mmengine would execute in it is taken out."""
        checkpoint = super().resume(filename, **kwargs)
        checkpoint['meta'].pop('config', None)
        return checkpoint


def load_plain(path, map_location=None):
    """A piece of one of DeepSpeed's checkpoints, without running code from it; DeepSpeed itself unpickles whatever is there."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
        return read_checkpoint(path)
