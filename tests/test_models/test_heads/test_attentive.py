"""The attentive head against a slow version, and as properties."""

import pytest
import torch
from mmpretrain.structures import DataSample

from mmcae.models import AttentiveClsHead


@pytest.fixture
def head():
    torch.manual_seed(0)
    head = AttentiveClsHead(num_classes=5, in_channels=12, num_heads=3)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return head


def normalised(vector, norm):
    centred = vector - vector.mean()
    return centred / (centred.square().mean() + 1e-6).sqrt() * norm.weight + norm.bias


def slow_pool(head, tokens):
    """One image: for each head a weighted mean of values, the weights from one query; no residual, no MLP."""
    attn, width = head.attn, 4
    query = attn.q.weight @ normalised(head.query_token[0, 0], head.norm_q) + attn.q_bias
    parts = []
    for h in range(3):
        part = slice(width * h, width * (h + 1))
        scores = torch.stack([query[part] @ (attn.k.weight @ normalised(t, head.norm_k))[part] for t in tokens])
        weights = torch.softmax(scores / width**0.5, dim=0)
        values = torch.stack([(attn.v.weight @ normalised(t, head.norm_v) + attn.v_bias)[part] for t in tokens])
        parts.append((weights[:, None] * values).sum(0))
    return attn.proj.weight @ torch.cat(parts) + attn.proj.bias


def test_pools_like_the_slow_version(head):
    tokens = torch.randn(6, 7, 12)
    pooled = torch.stack([slow_pool(head, image) for image in tokens])
    expected = (pooled - pooled.mean(0)) / (pooled.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(head.train().pre_logits((tokens,)), expected, rtol=1e-4, atol=1e-4)
    scores = head((tokens,))
    torch.testing.assert_close(scores, head.pre_logits((tokens,)) @ head.fc.weight.T + head.fc.bias)


def test_a_prediction_does_not_depend_on_the_rest_of_the_batch(head):
    tokens = torch.randn(20, 7, 12)
    for batch in tokens.split(5):
        head.train()((batch,))
    head.eval()
    torch.testing.assert_close(head((tokens,))[:1], head((tokens[:1],)))
    statistics = head.bn.running_mean.clone()
    head((tokens,))
    assert torch.equal(head.bn.running_mean, statistics)


def test_reads_every_token_and_the_last_stage_only(head):
    tokens = torch.randn(2, 7, 12)
    scores = head.eval()((tokens,))
    for i in range(7):
        changed = tokens.clone()
        changed[:, i] += torch.randn(12)
        assert not torch.allclose(head((changed,)), scores)
    torch.testing.assert_close(head((torch.randn(2, 3, 12), tokens)), scores)
    torch.testing.assert_close(head((tokens.flip(1),)), scores)  # tokens have no order here


def test_starts_as_the_paper_says():
    head = AttentiveClsHead(num_classes=200, in_channels=96, num_heads=4)
    head.init_weights()
    assert head.query_token.eq(0).all() and head.fc.bias.eq(0).all() and head.attn.proj.bias.eq(0).all()
    assert head.fc.weight.std().item() == pytest.approx(0.01, rel=0.05)
    for name in ('q', 'k', 'v', 'proj'):
        assert getattr(head.attn, name).weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not list(head.bn.parameters()) and head.bn.eps == 1e-5


def test_everything_in_it_learns(head):
    samples = [DataSample().set_gt_label(label) for label in (0, 1, 2, 3)]
    head.train().loss((torch.randn(4, 7, 12),), samples)['loss'].backward()
    # A key's bias adds the same to all scores, which the softmax does not see.
    silent = {name for name, parameter in head.named_parameters() if parameter.grad.abs().max() < 1e-6}
    assert silent <= {
        'norm_k.bias',
        'attn.proj.bias',
        'attn.v_bias',
        'norm_v.bias',
    }  # the last three only shift what the batch norm centres
    assert not {'query_token', 'attn.q.weight', 'fc.weight'} & silent
