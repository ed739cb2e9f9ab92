"""The precision that a machine is fast in, and autocast in it."""

from types import SimpleNamespace

import pytest
import torch

from mmcae.utils.errors import ConfigError
from mmcae.utils.precision import autocast, check_dtype, fast_dtype, set_matmul_precision


@pytest.mark.parametrize(('capability', 'dtype'), [(7, 'float16'), (8, 'bfloat16'), (9, 'bfloat16')])
def test_gpus_that_emulate_bfloat16_compute_in_float16(monkeypatch, capability, dtype):
    """V100 and T4 are of compute capability 7; torch counts emulation as support unless it is told not to."""
    monkeypatch.setattr('mmcae.utils.precision.get_device', lambda: 'cuda')
    monkeypatch.setattr('torch.version.hip', None)
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    monkeypatch.setattr('torch.cuda.current_device', lambda: 0)
    monkeypatch.setattr('torch.cuda.get_device_properties', lambda _: SimpleNamespace(major=capability))
    monkeypatch.setattr('torch.cuda._check_bf16_tensor_supported', lambda _: True)
    assert fast_dtype() == dtype


@pytest.mark.parametrize(('device', 'dtype'), [('mps', None), ('npu', 'float16'), ('musa', 'float16')])
def test_other_accelerators(monkeypatch, device, dtype):
    monkeypatch.setattr('mmcae.utils.precision.get_device', lambda: device)
    assert fast_dtype() == dtype


@pytest.mark.parametrize(
    ('dtype', 'expected'), [('float32', torch.float32), ('bfloat16', torch.bfloat16), ('float16', torch.bfloat16), (None, torch.float32)]
)
def test_autocast_on_a_cpu(monkeypatch, dtype, expected):
    monkeypatch.setattr('mmcae.utils.precision.get_device', lambda: 'cpu')
    monkeypatch.setattr('mmcae.utils.precision.has_fast_bfloat16', lambda: False)
    with autocast(dtype):
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype is expected


def test_unknown_dtype():
    with pytest.raises(ConfigError, match="KNNLoop: dtype='half'"):
        check_dtype('half', 'KNNLoop')


def test_matmul_precision():
    before = torch.get_float32_matmul_precision()
    try:
        set_matmul_precision('high')
        assert torch.get_float32_matmul_precision() == 'high'
        set_matmul_precision(None)
        assert torch.get_float32_matmul_precision() == 'high'
        with pytest.raises(ConfigError, match="float32_matmul_precision='tf32' must be one of 'highest'"):
            set_matmul_precision('tf32')
    finally:
        torch.set_float32_matmul_precision(before)
