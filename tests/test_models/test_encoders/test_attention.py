"""The one call of attention: bfloat16 on a CPU is float32 inside, and all else torch's own."""

import pytest
import torch
import torch.nn.functional as F

from mmcae.models.encoders.attention import attend


@pytest.fixture
def tokens():
    torch.manual_seed(0)
    return [torch.randn(2, 3, length, 8) for length in (5, 7, 7)]


@pytest.mark.parametrize('mask', [None, torch.randn(3, 5, 7), torch.rand(2, 1, 1, 7) > 0.3])
@pytest.mark.parametrize('autocast', [False, True])
def test_bfloat16_on_a_cpu(tokens, mask, autocast):
    halves = [x.bfloat16().requires_grad_() for x in tokens]
    given = mask.bfloat16() if mask is not None and mask.is_floating_point() else mask
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        found = attend(*halves, given)
    assert found.dtype is torch.bfloat16
    exact = [x.detach().float().requires_grad_() for x in halves]
    wanted = F.scaled_dot_product_attention(*exact, attn_mask=given.float() if given is not None and given.is_floating_point() else given)
    assert torch.equal(found, wanted.bfloat16())  # rounded once, at the end
    found.float().square().sum().backward()
    wanted.bfloat16().float().square().sum().backward()
    for half, full in zip(halves, exact, strict=True):
        torch.testing.assert_close(half.grad, full.grad.bfloat16())


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_all_else_is_torch_itself(tokens, dtype):
    q, k, v = (x.to(dtype) for x in tokens)
    assert torch.equal(attend(q, k, v), F.scaled_dot_product_attention(q, k, v))
