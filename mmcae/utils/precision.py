"""The precision that a machine is fast in, and autocast in it: one vocabulary for training, evaluation and features."""

from contextlib import contextmanager, nullcontext

import torch
from mmengine.device import get_device

from ..compat import has_fast_bfloat16
from .errors import ConfigError

DTYPES = {'float16': torch.float16, 'bfloat16': torch.bfloat16, 'float32': torch.float32}
MATMUL_PRECISIONS = ('highest', 'high', 'medium')


def fast_dtype():
    """The lower precision in which this machine computes faster than in single precision.

    Returns:
        str | None: 'bfloat16' or 'float16'; None for a CPU without instructions for bfloat16, which would only emulate it, and for MPS,
            for which mmengine has no mixed precision.
    """
    device = get_device()
    if device in ('cpu', 'mps'):
        return 'bfloat16' if device == 'cpu' and has_fast_bfloat16() else None
    # GPUs before Ampere (V100, T4) emulate bfloat16, which torch counts as support unless it is told not to.
    return 'bfloat16' if device == 'cuda' and torch.cuda.is_bf16_supported(including_emulation=False) else 'float16'


def check_dtype(dtype, name):
    """Refuse a dtype that autocast does not have.

    Args:
        dtype (str | None): Such as 'bfloat16'.
        name (str): Whose argument it is, for the message.

    Raises:
        ConfigError: It is neither None nor one of `DTYPES`.
    """
    if dtype not in (None, *DTYPES):
        raise ConfigError(f'{name}: dtype={dtype!r} must be None (what the machine is fast in) or one of {", ".join(map(repr, DTYPES))}')


@contextmanager
def autocast(dtype=None):
    """torch.autocast on the device that models are on.

    Args:
        dtype (str, optional): 'float32' computes in single precision, 'bfloat16' and 'float16' in mixed precision. Defaults to None: see
            :func:`fast_dtype`. A CPU has no float16 and takes bfloat16 in its place; MPS computes in single precision only.
    """
    device, dtype = get_device(), dtype or fast_dtype() or 'float32'
    if dtype == 'float32' or device == 'mps':
        yield
        return
    if device == 'cpu':
        dtype = 'bfloat16'
    with torch.autocast(device, DTYPES[dtype]):
        yield


def no_autocast(device):
    """A context in which autocast is off on a device, also on one that has none, such as 'meta'.

    Args:
        device (torch.device): Of the tensors that are computed with.
    """
    return torch.autocast(device.type, enabled=False) if torch.amp.is_autocast_available(device.type) else nullcontext()


def set_matmul_precision(precision: str | None):
    """Set how exactly a GPU multiplies float32 matrices, see :func:`torch.set_float32_matmul_precision`.

    Args:
        precision: 'highest' (float32, torch's default), 'high' (TF32), 'medium' (bfloat16); None leaves what is set.

    Raises:
        ConfigError: None of these.
    """
    if precision not in (None, *MATMUL_PRECISIONS):
        raise ConfigError(f'env_cfg.float32_matmul_precision={precision!r} must be one of {", ".join(map(repr, MATMUL_PRECISIONS))}')
    if precision:
        torch.set_float32_matmul_precision(precision)
