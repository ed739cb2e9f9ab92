"""Mixed precision that also runs in bfloat16, on a CPU as on a GPU."""

import logging
import math
from contextlib import contextmanager

import torch
from mmengine.device import get_device
from mmengine.dist import all_reduce
from mmengine.logging import print_log
from mmengine.optim import AmpOptimWrapper as MMEngineAmpOptimWrapper
from mmengine.optim import OptimWrapper
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from ..registry import OPTIM_WRAPPERS
from ..utils.errors import ConfigError, TrainingError
from ..utils.precision import DTYPES, fast_dtype


@OPTIM_WRAPPERS.register_module()
class AmpOptimWrapper(MMEngineAmpOptimWrapper):
    """mmengine's AmpOptimWrapper, extended to bfloat16 without loss scaling and to the CPU.

    float16 needs its loss scaled, because small gradients vanish in it; then steps with infinite gradients are skipped. bfloat16 has the
    range of float32: nothing is scaled and nothing skipped, so that a loss that is not finite shows. The CPU computes in bfloat16 only, and
    Apple's GPUs (MPS) here in single precision only.

    Args:
        dtype (str, optional): 'float16' or 'bfloat16'. Defaults to None: what the machine is fast in. That is bfloat16 on GPUs from
            NVIDIA's Ampere on and on CPUs with instructions for it, float16 on older GPUs, and single precision on other CPUs and on MPS.
        loss_scale (str | float | dict): For float16 alone, as in mmengine: 'dynamic', a fixed factor, or the arguments of torch's
            GradScaler.
        use_fsdp (bool): Each process holds a piece of every gradient: `clip_grad` takes the norm of all pieces together, and float16 scales
            its loss by torch's ShardedGradScaler.
        **kwargs: For mmengine's OptimWrapper: optimizer, clip_grad, accumulative_counts.

    Raises:
        ConfigError: An unknown dtype, or one that this machine does not compute in.
    """

    def __init__(self, dtype=None, loss_scale='dynamic', use_fsdp=False, **kwargs):
        if dtype not in (None, 'float16', 'bfloat16'):
            raise ConfigError(f"AmpOptimWrapper: dtype must be 'float16', 'bfloat16' or None, got {dtype!r}")
        device, self.use_fsdp = get_device(), use_fsdp
        if device == 'mps':
            if dtype:
                raise ConfigError(f'AmpOptimWrapper: no {dtype} on MPS; without dtype the training is in single precision there')
            print_log('No mixed precision on MPS: training in single precision', 'current')
        if device == 'cpu' and dtype == 'float16':
            raise ConfigError("AmpOptimWrapper: float16 needs a GPU; use dtype='bfloat16' on this machine")
        if device == 'cuda' and dtype == 'bfloat16' and fast_dtype() == 'float16':
            print_log("This GPU emulates bfloat16, which is slow: leave dtype out, or set 'float16'", 'current', logging.WARNING)
        dtype = dtype or fast_dtype()
        if dtype == 'float16':
            super().__init__(loss_scale=loss_scale, dtype=dtype, use_fsdp=use_fsdp, **kwargs)
            return
        OptimWrapper.__init__(self, **kwargs)  # past mmengine's check for a GPU
        self.cast_dtype = DTYPES[dtype or 'float32']
        self.loss_scaler = torch.amp.GradScaler(enabled=False)
        self._scale_update_param = None

    @contextmanager
    def optim_context(self, model):
        """mmengine's context of a forward pass: gradients accumulate, and autocast is on where precision is to be lowered.

        Args:
            model (nn.Module): The model.
        """
        if isinstance(model, FSDPModule):  # mmengine knows `no_sync` of DDP and FSDP1
            model.set_requires_gradient_sync(self.should_sync())
        if self.cast_dtype is torch.float32:
            with OptimWrapper.optim_context(self, model):
                yield
        else:
            with super().optim_context(model):
                yield

    def update_params(self, loss, *args, **kwargs):
        """As mmengine's; the norm of the gradients is read when the update is under way, so that a GPU is not waited for in between."""
        self.grad_norm = None
        super().update_params(loss, *args, **kwargs)
        if self.grad_norm is not None:
            self.message_hub.update_scalar(f'train/{self.grad_name}', float(self.grad_norm))

    def _clip_grad(self):
        parameters = [parameter for group in self.param_groups for parameter in group['params'] if parameter.grad is not None]
        if not parameters:
            return
        if not self.use_fsdp or self.clip_func is not torch.nn.utils.clip_grad_norm_:
            norm = self.clip_func(parameters, **self.clip_grad_kwargs)  # None where values are clipped
            self.grad_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
            return
        settings = dict(self.clip_grad_kwargs)
        power = float(settings.pop('norm_type', 2))
        own = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters], power)
        if math.isinf(power):
            all_reduce(total := own, 'max')
        else:
            all_reduce(total := own**power)
            total = total ** (1 / power)
        if settings.pop('error_if_nonfinite', False) and not torch.isfinite(total):
            raise TrainingError(f'The gradients are not finite: their norm (norm_type={power:g}) is {float(total)}')
        torch.nn.utils.clip_grads_with_norm_(parameters, total_norm=total, **settings)
        self.grad_norm = total

    def load_state_dict(self, state_dict):
        """Continue from the state of a run in either precision.

        Args:
            state_dict (dict): Of this class, of mmengine's AmpOptimWrapper or of its OptimWrapper.
        """
        if not state_dict.get('loss_scaler'):  # an unscaled run leaves nothing to continue with
            state_dict.pop('loss_scaler', None)
        super().load_state_dict(state_dict)
