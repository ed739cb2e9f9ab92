"""Attention maps: the weights that the model itself uses, with and without relative position bias, on any grid."""

import numpy as np
import pytest
import torch

from mmcae.models import CAEViT
from mmcae.utils.errors import ConfigError
from mmcae.visualization.attention import attention_maps, attention_sheet, overlay


@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('size', [(64, 64), (32, 96)])
@pytest.mark.parametrize('block', [-1, 0])
def test_weights_are_those_the_model_uses(monkeypatch, bias, size, block):
    encoder = CAEViT(dict(embed_dims=48, num_layers=3, num_heads=4), img_size=64, use_rel_pos_bias=bias).eval()
    for parameter in encoder.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    images = torch.randn(2, 3, *size)
    maps = attention_maps(encoder, images, block)
    seen = []

    def slow_attention(q, k, v, attn_mask=None):
        weights = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        weights = (weights if attn_mask is None else weights + attn_mask).softmax(-1)
        seen.append(weights)
        return weights @ v

    monkeypatch.setattr(torch.nn.functional, 'scaled_dot_product_attention', slow_attention)
    with torch.no_grad():
        encoder(images)
    grid = (size[0] // 16, size[1] // 16)
    assert maps.shape == (2, 4, *grid)
    torch.testing.assert_close(maps, seen[block][:, :, 0, 1:].unflatten(-1, grid), rtol=1e-4, atol=1e-6)


def test_the_model_is_left_as_it_was(tiny_cae):
    encoder = tiny_cae().backbone.eval()
    images = torch.randn(1, 3, 64, 64)
    before = encoder(images)[0]
    attention_maps(encoder, images)
    torch.testing.assert_close(encoder(images)[0], before)
    assert not encoder.blocks[-1].attn._forward_pre_hooks
    encoder.out_indices = (0,)  # whose outputs need the first block alone
    assert attention_maps(encoder, images).shape == (1, 4, 4, 4)
    with pytest.raises(ConfigError, match='has 3'):
        attention_maps(encoder, images, block=3)


def test_the_overlay_is_brightest_where_the_weight_is_largest():
    weights = np.zeros((4, 4))
    weights[3, 0] = 1
    shown = overlay(np.full((64, 64, 3), 100, np.uint8), weights).sum(axis=2)
    row, column = np.unravel_index(shown.argmax(), shown.shape)
    assert row >= 48 and column < 16
    assert shown[:16, 48:].max() < shown[row, column] / 2


def test_the_sheet_has_a_column_for_each_head():
    images = [np.zeros((40, 40, 3), np.uint8)] * 2
    sheets = [attention_sheet(images, np.random.default_rng(0).random((2, heads, 4, 4)), side=50) for heads in (1, 3)]
    assert sheets[1].width - sheets[0].width == 2 * 56


@pytest.mark.parametrize('name', ['vit_small_patch16_224', 'vit_small_patch14_reg4_dinov2', 'vit_small_patch16_dinov3'])
@torch.no_grad()
def test_vits_of_timm(name):
    """As timm's unfused attention computes it."""
    from mmcae.models import TimmEncoder

    encoder = TimmEncoder(name, depth=2, embed_dim=32, num_heads=2, img_size=4 * (14 if '14' in name else 16)).eval()
    images = torch.randn(2, 3, *encoder.img_size)
    maps = attention_maps(encoder, images, block=1)
    assert maps.shape == (2, 2, 4, 4)
    attention, weights = encoder.blocks[1].attn, []
    attention.fused_attn = False
    attention.attn_drop.register_forward_hook(lambda module, inputs, output: weights.append(output))
    encoder.encode(images)
    torch.testing.assert_close(maps.flatten(2), weights[0][:, :, 0, encoder.num_prefix_tokens :])
