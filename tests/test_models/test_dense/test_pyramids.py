"""The two pyramids: strides, values, memory layout, norms, and errors."""

import pytest
import torch
from mmcv.ops import roi_align
from torch import nn

from mmcae.models import CAEViT, DeconvPyramid, SimpleFeaturePyramid
from mmcae.registry import MODELS
from mmcae.utils.errors import ConfigError

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


# ---------------------------------------------------------------- ViTDet's simple feature pyramid


@torch.no_grad()
def test_simple_feature_pyramid():
    """Four scales out of one map by transposed convolutions that halve the channels, then two normalised convolutions; the fifth is
    every other pixel of the fourth."""
    torch.manual_seed(0)
    neck = MODELS.build(dict(type='mmcae.SimpleFeaturePyramid', in_channels=16, out_channels=6))
    for parameter in neck.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(2, 16, 4, 6)
    maps = neck((x,))
    assert [tuple(m.shape) for m in maps] == [(2, 6, 16, 24), (2, 6, 8, 12), (2, 6, 4, 6), (2, 6, 2, 3), (2, 6, 1, 2)]
    assert all(m.is_contiguous() for m in maps) and torch.equal(maps[4], maps[3][:, :, ::2, ::2])

    def normalised(layer, y):
        mean, variance = y.mean(1, keepdim=True), y.var(1, keepdim=True, unbiased=False)
        return (y - mean) / (variance + 1e-6).sqrt() * layer.weight[:, None, None] + layer.bias[:, None, None]

    def deconvolved(layer, y):
        """Each pixel becomes 2 x 2 pixels."""
        blocks = torch.einsum('bchw,cdij->bdhiwj', y, layer.weight) + layer.bias[:, None, None, None, None]
        return blocks.flatten(4, 5).flatten(2, 3)

    for factor, scale, found in zip((4, 2, 1, 0.5), neck.scales, maps[:4], strict=True):
        resampled, one, three = scale
        y = x
        if factor == 4:
            first, norm, _, second = resampled
            assert (first.out_channels, second.out_channels) == (8, 4)
            y = deconvolved(second, nn.functional.gelu(normalised(norm, deconvolved(first, y))))
        elif factor == 2:
            y = deconvolved(resampled[0], y)
            assert y.shape[1] == 8
        elif factor == 0.5:
            y = y.reshape(2, 16, 2, 2, 3, 2).amax((3, 5))
        assert one.conv.bias is None and three.conv.bias is None and not one.with_activation and not three.with_activation
        y = normalised(one.norm, torch.einsum('bchw,dc->bdhw', y, one.conv.weight[..., 0, 0]))
        y = normalised(three.norm, nn.functional.conv2d(y, three.conv.weight, padding=1))
        torch.testing.assert_close(found, y, rtol=1e-4, atol=1e-5)


def test_settings_of_the_simple_feature_pyramid():
    neck = SimpleFeaturePyramid(8, 4, factors=(2, 1), num_outs=2, norm_cfg=dict(type='BN'))
    assert [m.shape[1:] for m in neck((torch.randn(1, 8, 4, 4),))] == [(4, 8, 8), (4, 4, 4)]
    assert isinstance(neck.scales[0][1].norm, nn.BatchNorm2d)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(in_channels=10), 'in_channels=10 must be a multiple of 4'),
        (dict(in_channels=8, num_outs=3), 'num_outs=3 at least the number of factors, 4'),
        (dict(in_channels=8, factors=(8,)), 'factors 4, 2, 1 and 0.5, not 8'),
    ],
)
def test_bad_settings_of_the_simple_feature_pyramid(settings, message):
    with pytest.raises(ConfigError, match=message):
        SimpleFeaturePyramid(**settings)


def test_simple_feature_pyramid_takes_one_map():
    with pytest.raises(ConfigError, match='the map of one block, not 4: set out_indices of the backbone to -1'):
        SimpleFeaturePyramid(8)(FEATURES)
