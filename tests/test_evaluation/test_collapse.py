"""The collapse metrics at the values that can be told by hand."""

import math

import pytest
import torch

from mmcae.evaluation import effective_rank, feature_std


def test_effective_rank_counts_directions():
    line = torch.randn(100, 1) * torch.randn(1, 8)
    assert effective_rank(line) == pytest.approx(1, abs=1e-4)
    orthogonal = torch.linalg.qr(torch.randn(100, 8))[0]
    assert effective_rank(orthogonal) == pytest.approx(8, abs=1e-3)
    assert effective_rank(5 * orthogonal) == pytest.approx(effective_rank(orthogonal))


def test_effective_rank_is_the_exponential_of_the_entropy():
    shares = torch.tensor([0.7, 0.2, 0.1])
    features = torch.diag(shares) @ torch.linalg.qr(torch.randn(3, 3))[0]
    entropy = -sum(share * math.log(share) for share in shares.tolist())
    assert effective_rank(features) == pytest.approx(math.exp(entropy), rel=1e-4)


def test_feature_std_is_0_for_collapsed_and_1_for_spread_features():
    assert feature_std(torch.randn(1, 64).expand(100, 64)) == pytest.approx(0, abs=1e-7)
    assert feature_std(torch.randn(5000, 64)) == pytest.approx(1, abs=0.02)
    leaning = torch.randn(5000, 64) + 3
    assert feature_std(leaning) < 0.5
