"""The cross-entropy over tokens against torch's own: value and gradient, in parts, in every precision."""

import pytest
import torch
import torch.nn.functional as F

from mmcae.models.targets import cross_entropy as losses
from mmcae.models.targets.cross_entropy import token_cross_entropy


@pytest.fixture(params=[5, 10**6], ids=['row by row', 'at once'])
def chunk(request, monkeypatch):
    monkeypatch.setattr(losses, 'CHUNK', request.param)


@pytest.mark.parametrize(
    ('dtype', 'tolerance'), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)]
)
def test_same_as_torch(chunk, dtype, tolerance):
    """A gradient in the precision of the logits; the loss itself is never less than float32."""
    values, ids = 3 * torch.randn(7, 5).to(dtype), torch.randint(5, (7,))
    logits = values.clone().requires_grad_()
    exact = values.double().requires_grad_()
    loss = token_cross_entropy(logits, ids)
    wanted = F.cross_entropy(exact, ids)
    (2 * loss).backward()
    (2 * wanted).backward()
    assert loss.dtype == torch.promote_types(dtype, torch.float32) and logits.grad.dtype == dtype
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-6, atol=0)
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=0, atol=tolerance * exact.grad.abs().max().item())


def test_gradient_by_differences(chunk):
    logits, ids = torch.randn(4, 6, dtype=torch.float64, requires_grad=True), torch.randint(6, (4,))
    assert torch.autograd.gradcheck(lambda x: token_cross_entropy(x, ids), logits)


def test_small_probabilities_survive_float16():
    """With the loss scaled, as float16 has it: the gradient of a token of probability 1e-4 among 6000 rows is no zero."""
    logits = torch.zeros(6000, 8, dtype=torch.float16)
    logits[:, 0] = 9
    logits.requires_grad_()
    (2.0**16 * token_cross_entropy(logits, torch.zeros(6000, dtype=torch.long))).backward()
    assert (logits.grad[:, 1:] > 0).all()


def test_no_full_copy_in_float32(monkeypatch):
    """What is kept from the forward pass is one tensor, as wide as the logits and in their precision."""
    kept = []
    logits = torch.randn(64, 32).bfloat16().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        token_cross_entropy(logits, torch.randint(32, (64,)))
    assert [(x.shape, x.dtype) for x in kept] == [((64, 32), torch.bfloat16)]


def test_without_gradient():
    assert not token_cross_entropy(torch.randn(3, 4), torch.tensor([0, 1, 2])).requires_grad
