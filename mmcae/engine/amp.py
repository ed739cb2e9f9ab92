"""Mixed precision that also runs in bfloat16, on a CPU as on a GPU."""

from contextlib import contextmanager

import torch
from mmengine.dist import all_reduce
from mmengine.optim import AmpOptimWrapper as MMEngineAmpOptimWrapper
from mmengine.optim import OptimWrapper

from ..compat import has_accelerator, has_fast_bfloat16
from ..registry import OPTIM_WRAPPERS
from ..utils.errors import ConfigError

DTYPES = {'float16': torch.float16, 'bfloat16': torch.bfloat16}


@OPTIM_WRAPPERS.register_module()
class AmpOptimWrapper(MMEngineAmpOptimWrapper):
    """mmengine's AmpOptimWrapper, extended to bfloat16 without loss scaling and to the CPU.

    float16 needs its loss scaled, because small gradients vanish in it; then steps with infinite gradients are skipped. bfloat16 has the
    range of float32: nothing is scaled and nothing skipped, so that a loss that is not finite shows. The CPU computes in bfloat16 only.

    Args:
        dtype (str, optional): 'float16' or 'bfloat16'. Defaults to None: what the machine is fast in. That is bfloat16 on GPUs from
            NVIDIA's Ampere on and on CPUs with instructions for it, float16 on older GPUs, and single precision on other CPUs.
        loss_scale (str | float | dict): For float16 alone, as in mmengine: 'dynamic', a fixed factor, or the arguments of torch's
            GradScaler.
        use_fsdp (bool): Each process holds a piece of every gradient: `clip_grad` takes the norm of all pieces together, and float16 scales
            its loss by torch's ShardedGradScaler.
        **kwargs: For mmengine's OptimWrapper: optimizer, clip_grad, accumulative_counts.

    Raises:
        ConfigError: An unknown dtype, or float16 without a GPU.
    """

    def __init__(self, dtype=None, loss_scale='dynamic', use_fsdp=False, **kwargs):
        if dtype not in (None, *DTYPES):
            raise ConfigError(f"AmpOptimWrapper: dtype must be 'float16', 'bfloat16' or None, got {dtype!r}")
        dtype = dtype or fast_dtype()
        self.use_fsdp = use_fsdp
        if dtype == 'float16':
            if not has_accelerator():
                raise ConfigError("AmpOptimWrapper: float16 needs a GPU; use dtype='bfloat16' on this machine")
            super().__init__(loss_scale=loss_scale, dtype=dtype, use_fsdp=use_fsdp, **kwargs)
            return
        OptimWrapper.__init__(self, **kwargs)  # past mmengine's check for a GPU
        self.cast_dtype = DTYPES.get(dtype, torch.float32)
        self.loss_scaler = torch.amp.GradScaler(enabled=False)
        self._scale_update_param = None

    @contextmanager
    def optim_context(self, model):
        """mmengine's context of a forward pass: gradients accumulate, and autocast is on where precision is to be lowered.

        Args:
            model (nn.Module): The model.
        """
        if self.cast_dtype is torch.float32:
            with OptimWrapper.optim_context(self, model):
                yield
        else:
            with super().optim_context(model):
                yield

    def _clip_grad(self):
        if not self.use_fsdp or self.clip_func is not torch.nn.utils.clip_grad_norm_:
            return super()._clip_grad()
        settings = dict(self.clip_grad_kwargs)
        power = float(settings.pop('norm_type', 2))
        parameters = [parameter for group in self.param_groups for parameter in group['params'] if parameter.grad is not None]
        own = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters], power)
        total = own**power
        all_reduce(total)
        total = total ** (1 / power)
        torch.nn.utils.clip_grads_with_norm_(parameters, settings['max_norm'], total)
        self.message_hub.update_scalar(f'train/{self.grad_name}', float(total))

    def load_state_dict(self, state_dict):
        """Continue from the state of a run in either precision.

        Args:
            state_dict (dict): Of this class, of mmengine's AmpOptimWrapper or of its OptimWrapper.
        """
        if not state_dict.get('loss_scaler'):  # an unscaled run leaves nothing to continue with
            state_dict.pop('loss_scaler', None)
        super().load_state_dict(state_dict)


def fast_dtype():
    """The lower precision in which this machine computes faster than in single precision.

    Returns:
        str | None: 'bfloat16' or 'float16'; None for a CPU without instructions for bfloat16, which would only emulate it.
    """
    if not has_accelerator():
        return 'bfloat16' if has_fast_bfloat16() else None
    return 'bfloat16' if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else 'float16'
