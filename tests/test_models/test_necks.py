"""The deconvolution pyramid: strides, memory layout, norms, and errors."""

import pytest
import torch
from mmcv.ops import roi_align
from torch import nn

from mmcae.models import CAEViT, DeconvPyramid
from mmcae.registry import MODELS

FEATURES = [torch.randn(2, 8, 4, 6) for _ in range(4)]


@torch.no_grad()
def test_four_scales():
    pyramid = MODELS.build(dict(type='mmcae.DeconvPyramid', in_channels=8)).eval()
    maps = pyramid(FEATURES)
    assert [tuple(m.shape) for m in maps] == [(2, 8, 16, 24), (2, 8, 8, 12), (2, 8, 4, 6), (2, 8, 2, 3)]
    assert torch.equal(maps[2], FEATURES[2])
    torch.testing.assert_close(maps[3], nn.functional.max_pool2d(FEATURES[3], 2))


@torch.no_grad()
def test_factors_in_any_order():
    maps = DeconvPyramid(8, factors=(1, 2), norm_cfg=dict(type='BN'))(FEATURES[:2])
    assert [tuple(m.shape[2:]) for m in maps] == [(4, 6), (8, 12)]


def test_norm():
    assert isinstance(DeconvPyramid(8).scales[0][1], nn.SyncBatchNorm)
    assert isinstance(DeconvPyramid(8, norm_cfg=dict(type='BN')).scales[0][1], nn.BatchNorm2d)


def test_bad_factor():
    with pytest.raises(ValueError, match='factors 4, 2, 1 and 0.5, not 3'):
        DeconvPyramid(8, factors=(3,))


def test_as_many_maps_as_factors():
    with pytest.raises(ValueError, match='3 maps for 4 factors: set out_indices'):
        DeconvPyramid(8, norm_cfg=dict(type='BN'))(FEATURES[:3])


@torch.no_grad()
def test_roi_align_reads_our_maps_right():
    """mmcv's RoIAlign on CPU misreads maps that are not contiguous, which tokens turned into maps easily are."""
    torch.manual_seed(0)
    settings = dict(img_size=64, out_type='featmap', out_indices=(0, 1, 2, 3), final_norm=False)
    backbone = CAEViT(dict(embed_dims=8, num_layers=4, num_heads=2), **settings).eval()
    maps = DeconvPyramid(8, norm_cfg=dict(type='BN')).eval()(backbone(torch.randn(1, 3, 64, 64)))
    box = torch.tensor([[0.0, 7.0, 11.0, 41.0, 50.0]])
    for x, stride in zip(maps, (4, 8, 16, 32), strict=True):
        found = roi_align(x, box, (3, 3), 1 / stride, 2, 'avg', True)
        torch.testing.assert_close(found, slow_roi_align(x, box[0, 1:] / stride, 3, 2), rtol=1e-4, atol=1e-5)


def slow_roi_align(x, box, size, samples):
    """Bilinear samples at the centres of a regular grid within each cell, averaged."""
    left, top, right, bottom = (value - 0.5 for value in box.tolist())
    steps = torch.arange(size * samples) + 0.5
    columns = (left + (right - left) * steps / (size * samples)).clamp(0, x.shape[3] - 1)
    rows = (top + (bottom - top) * steps / (size * samples)).clamp(0, x.shape[2] - 1)
    values = torch.stack([torch.stack([bilinear(x[0], r, c) for c in columns.tolist()], -1) for r in rows.tolist()], -2)
    return nn.functional.avg_pool2d(values, samples)[None]


def bilinear(x, row, column):
    r, c = int(row), int(column)
    r2, c2 = min(r + 1, x.shape[1] - 1), min(c + 1, x.shape[2] - 1)
    a, b = row - r, column - c
    return (1 - a) * ((1 - b) * x[:, r, c] + b * x[:, r, c2]) + a * ((1 - b) * x[:, r2, c] + b * x[:, r2, c2])
