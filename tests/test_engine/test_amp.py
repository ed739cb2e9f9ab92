"""Mixed precision on this machine: computes in bfloat16, steps, and continues from every kind of state."""

import pytest
import torch
from mmengine.optim import OptimWrapper
from torch import nn

from mmcae.compat import has_accelerator
from mmcae.registry import OPTIM_WRAPPERS
from mmcae.utils.errors import ConfigError, TrainingError


def build(model, **settings):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return OPTIM_WRAPPERS.build(dict(type='mmcae.AmpOptimWrapper', optimizer=optimizer, **settings))


def step(model, wrapper, images):
    with wrapper.optim_context(model):
        output = model(images)
        loss = output.float().pow(2).mean()
    wrapper.update_params(loss)
    return output


@pytest.fixture
def fast_bfloat16(monkeypatch):
    """Have the machine be a CPU with or without instructions for bfloat16."""

    def claim(it_is):
        monkeypatch.setattr('mmcae.engine.amp.get_device', lambda: 'cpu')
        monkeypatch.setattr('mmcae.utils.precision.get_device', lambda: 'cpu')
        monkeypatch.setattr('mmcae.utils.precision.has_fast_bfloat16', lambda: it_is)

    return claim


@pytest.mark.parametrize('fast, dtype', [(True, torch.bfloat16), (False, torch.float32)])
def test_precision_is_lowered_where_that_is_faster(fast_bfloat16, fast, dtype):
    fast_bfloat16(fast)
    model, reference = nn.Linear(8, 4), nn.Linear(8, 4)
    reference.load_state_dict(model.state_dict())
    images = torch.randn(16, 8)
    wrapper = build(model, accumulative_counts=2)
    assert step(model, wrapper, images[:8]).dtype is dtype
    assert torch.equal(model.weight, reference.weight)
    step(model, wrapper, images[8:])
    step(reference, OptimWrapper(torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)), images)
    torch.testing.assert_close(model.weight, reference.weight, atol=1e-6 if dtype is torch.float32 else 2e-3, rtol=0)


def test_computes_in_bfloat16_and_keeps_weights_in_float32():
    model, reference = nn.Linear(8, 4), nn.Linear(8, 4)
    reference.load_state_dict(model.state_dict())
    images = torch.randn(16, 8)
    output = step(model, build(model, dtype='bfloat16', clip_grad=dict(max_norm=1e3)), images)
    assert output.dtype is torch.bfloat16
    assert model.weight.dtype is torch.float32
    step(reference, OptimWrapper(torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)), images)
    torch.testing.assert_close(model.weight, reference.weight, atol=2e-3, rtol=0)
    assert not torch.equal(model.weight, reference.weight)


def test_a_loss_that_is_not_finite_is_not_hidden():
    """Without loss scaling the step is done, and what is wrong shows in the weights, not in a silent standstill."""
    model = nn.Linear(2, 1)
    step(model, build(model, dtype='bfloat16'), torch.full((1, 2), float('nan')))
    assert model.weight.isnan().all()


def test_accumulates_gradients():
    model, reference = nn.Linear(8, 4), nn.Linear(8, 4)
    reference.load_state_dict(model.state_dict())
    images = torch.randn(16, 8)
    wrapper = build(model, dtype='bfloat16', accumulative_counts=2)
    step(model, wrapper, images[:8])
    assert torch.equal(model.weight, reference.weight)
    step(model, wrapper, images[8:])
    step(reference, build(reference, dtype='bfloat16'), images)
    torch.testing.assert_close(model.weight, reference.weight, atol=1e-3, rtol=0)


@pytest.mark.parametrize('kind', ['own', 'plain', 'float16'])
def test_continues_from_the_state_of_another_precision(kind):
    """The momentum arrives, whether the run before was in bfloat16, float32, or float16 with its loss scaler's state."""
    model = nn.Linear(8, 4)
    before = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)) if kind == 'plain' else build(model)
    step(model, before, torch.randn(16, 8))
    state = before.state_dict()
    if kind == 'float16':
        state['loss_scaler'] = dict(scale=1024.0, growth_factor=2.0, backoff_factor=0.5, growth_interval=2000, _growth_tracker=3)
    wrapper = build(model)
    wrapper.load_state_dict(state)
    momentum = wrapper.optimizer.state[model.weight]['momentum_buffer']
    assert torch.equal(momentum, before.optimizer.state[model.weight]['momentum_buffer']) and momentum.abs().sum() > 0


def test_on_mps_the_recipes_train_in_single_precision(monkeypatch):
    """mmengine's autocast knows no MPS; here the model itself is on the CPU."""
    monkeypatch.setattr('mmcae.engine.amp.get_device', lambda: 'mps')
    monkeypatch.setattr('mmcae.utils.precision.get_device', lambda: 'mps')
    model, reference = nn.Linear(8, 4), nn.Linear(8, 4)
    reference.load_state_dict(model.state_dict())
    images = torch.randn(16, 8)
    assert step(model, build(model, clip_grad=dict(max_norm=1e3)), images).dtype is torch.float32
    step(reference, OptimWrapper(torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)), images)
    torch.testing.assert_close(model.weight, reference.weight)
    for asked in ('float16', 'bfloat16'):
        with pytest.raises(ConfigError, match=f'no {asked} on MPS; without dtype'):
            build(model, dtype=asked)


@pytest.mark.parametrize('norm_type', [1, 2, 3, 'inf', float('inf')])
def test_gradients_in_pieces_are_clipped_by_the_norm_of_all(monkeypatch, norm_type):
    """Two processes with half of a vector each, against torch on the whole."""
    gradient = torch.tensor([3.0, -4.0, 12.0, 0.5])
    whole = nn.Parameter(torch.zeros(4))
    whole.grad = gradient.clone()
    expected = torch.nn.utils.clip_grad_norm_([whole], 0.7, norm_type=float(norm_type))
    others = {  # what the process of the second half adds to a sum, or to a maximum
        'sum': lambda value: value.add_(gradient[2:].abs().pow(float(norm_type)).sum()),
        'max': lambda value: value.copy_(torch.maximum(value, gradient[2:].abs().max())),
    }
    monkeypatch.setattr('mmcae.engine.amp.all_reduce', lambda value, op='sum': others[op](value))
    piece = nn.Parameter(torch.zeros(2))
    piece.grad = gradient[:2].clone()
    optimizer = torch.optim.SGD([piece], lr=1.0)
    settings = dict(type='mmcae.AmpOptimWrapper', optimizer=optimizer, use_fsdp=True, dtype='bfloat16')
    wrapper = OPTIM_WRAPPERS.build(dict(settings, clip_grad=dict(max_norm=0.7, norm_type=norm_type, error_if_nonfinite=True)))
    wrapper._clip_grad()
    torch.testing.assert_close(piece.grad, whole.grad[:2])
    assert float(wrapper.grad_norm) == pytest.approx(float(expected))
    piece.grad = torch.tensor([float('inf'), 0.0])
    with pytest.raises(TrainingError, match='gradients are not finite'):
        wrapper._clip_grad()


def test_norm_of_the_gradients_is_logged():
    model = nn.Linear(2, 1, bias=False)
    wrapper = build(model, dtype='bfloat16', clip_grad=dict(max_norm=0.5), accumulative_counts=2)
    wrapper.update_params(model.weight.sum())
    assert wrapper.grad_norm is None  # gradients accumulate, nothing is clipped yet
    wrapper.update_params(model.weight.sum())
    assert wrapper.message_hub.get_scalar('train/grad_norm').current() == pytest.approx(2**0.5)
    values = build(model, dtype='bfloat16', clip_grad=dict(type='value', clip_value=0.1))
    values.update_params(model.weight.sum())
    assert values.grad_norm is None


@pytest.mark.skipif(has_accelerator(), reason='a GPU computes in float16')
def test_float16_without_a_gpu_is_refused():
    with pytest.raises(ConfigError, match="use dtype='bfloat16'"):
        build(nn.Linear(2, 2), dtype='float16')


def test_unknown_dtype_is_refused():
    with pytest.raises(ConfigError, match="'float8'"):
        build(nn.Linear(2, 2), dtype='float8')
