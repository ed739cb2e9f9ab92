"""Attention, blocks, position tables and initialisation against slow, obvious versions and stated statistics."""

import math

import pytest
import torch
from timm.layers import DropPath
from torch import nn

from mmcae.checkpoints.tables import resize_position_table, sincos_position_table
from mmcae.models import CAEViT, LatentContextualRegressor
from mmcae.models.encoders.layers import (
    Block,
    SelfAttention,
    add_residual,
    drop_path_rates,
    init_stack,
    layer_scale,
    pick,
    trunc_normal_,
)


def randomise(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module.double()


def slow_attention(attention, x, bias=None):
    """One head and one token at a time."""
    heads = attention.num_heads
    q = x @ attention.qkv.weight.chunk(3)[0].T + attention.q_bias
    k = x @ attention.qkv.weight.chunk(3)[1].T
    v = x @ attention.qkv.weight.chunk(3)[2].T + attention.v_bias
    width = q.shape[-1] // heads
    out = torch.zeros_like(q)
    for b in range(len(x)):
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            for i in range(x.shape[1]):
                scores = torch.stack([q[b, i, part] @ k[b, j, part] / math.sqrt(width) for j in range(x.shape[1])])
                if bias is not None:
                    scores = scores + bias[h, i]
                out[b, i, part] = scores.softmax(0) @ v[b, :, part]
    return attention.proj(out)


@pytest.mark.parametrize(('dim', 'heads', 'inner'), [(12, 3, 12), (16, 5, 15)])
@torch.no_grad()
def test_attention(dim, heads, inner):
    """The second case is that of the authors' large model, 12 heads on 1024 channels: narrower inside."""
    attention = randomise(SelfAttention(dim, heads))
    assert attention.q_bias.shape == (inner,)
    x = torch.randn(2, 5, dim, dtype=torch.float64)
    torch.testing.assert_close(attention(x), slow_attention(attention, x))


@torch.no_grad()
def test_attention_with_relative_position_bias():
    attention = randomise(SelfAttention(8, 2, bias_grid=(2, 3)))
    table = attention.relative_position_bias_table
    x = torch.randn(1, 7, 8, dtype=torch.float64)
    bias = torch.zeros(2, 7, 7, dtype=torch.float64)
    for i in range(7):
        for j in range(7):
            if i and j:
                down, right = (i - 1) // 3 - (j - 1) // 3, (i - 1) % 3 - (j - 1) % 3
                row = (down + 1) * 5 + right + 2
            else:
                row = 15 + (1 if i else 0) + (0 if i or j else 2)
            bias[:, i, j] = table[row]
    torch.testing.assert_close(attention(x, (2, 3)), slow_attention(attention, x, bias))
    torch.testing.assert_close(attention(x), attention(x, (2, 3)))  # its own grid, where none is given


@torch.no_grad()
def test_block():
    block = randomise(Block(8, 2, hidden=20, init_value=0.1))
    x = torch.randn(2, 4, 8, dtype=torch.float64)
    y = x + block.gamma_1 * block.attn(block.norm1(x))
    hidden = nn.functional.gelu(block.norm2(y) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias)
    assert hidden.shape[-1] == 20
    torch.testing.assert_close(block(x), y + block.gamma_2 * (hidden @ block.mlp.fc2.weight.T + block.mlp.fc2.bias))
    assert block.norm1.eps == 1e-6


def test_layer_scale():
    assert torch.equal(layer_scale(3, 1e-5), torch.full((3,), 1e-5))
    assert layer_scale(3, 0) is None
    assert Block(8, 2).gamma_1 is None
    x, branch = torch.randn(2, 1, 3), torch.randn(2, 1, 3)
    torch.testing.assert_close(add_residual(x, branch, None, nn.Identity()), x + branch)


def test_drop_path_of_a_block():
    """Whole branches vanish for some samples of a batch, in training only, and the others are scaled up."""
    block = Block(8, 2, drop_path=0.5, init_value=1.0)
    assert isinstance(block.drop_path, DropPath) and block.drop_path.drop_prob == 0.5
    x = torch.randn(1, 4, 8).expand(64, -1, -1)
    assert torch.equal(block.eval()(x)[0], block(x)[1])
    y = add_residual(x, torch.ones_like(x), None, block.train().drop_path) - x
    assert {round(v, 4) for v in y.flatten().tolist()} == {0.0, 2.0}
    assert all(len(sample.unique()) == 1 for sample in y.round())


def test_drop_path_rates_rise_linearly():
    assert drop_path_rates(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert drop_path_rates(0.1, 0) == []


def test_pick():
    tokens, index = torch.randn(2, 5, 3), torch.tensor([[4, 0], [1, 1]])
    torch.testing.assert_close(pick(tokens, index), torch.stack([tokens[0, [4, 0]], tokens[1, [1, 1]]]))
    torch.testing.assert_close(pick(tokens[:1], index), torch.stack([tokens[0, [4, 0]], tokens[0, [1, 1]]]))


@pytest.mark.parametrize('grid', [(4, 4), (2, 5), (6, 1)])
def test_sincos_table(grid):
    """Row r, column c: sines and cosines of r, then of c, in raster order for any grid."""
    dim = 16
    table = sincos_position_table(grid, dim)
    assert table.shape == (1, grid[0] * grid[1], dim) and table.dtype == torch.float32
    for row in range(grid[0]):
        for column in range(grid[1]):
            waves = [position / 10000 ** (k / 4) for position in (row, column) for k in range(4)]
            wanted = [math.sin(w) for w in waves[:4]] + [math.cos(w) for w in waves[:4]]
            wanted += [math.sin(w) for w in waves[4:]] + [math.cos(w) for w in waves[4:]]
            assert table[0, row * grid[1] + column].tolist() == pytest.approx(wanted, abs=1e-6)


def test_sincos_table_needs_a_multiple_of_four():
    with pytest.raises(ValueError, match='multiple of 4, got 18'):
        sincos_position_table((2, 2), 18)


@pytest.mark.parametrize('by_scale', [False, True])
def test_resizing_a_table(by_scale):
    table = torch.randn(1, 12, 8)
    assert resize_position_table(table, (3, 4), (3, 4), by_scale) is table
    resized = resize_position_table(table, (3, 4), (5, 2), by_scale)
    assert resized.shape == (1, 10, 8)
    constant = resize_position_table(torch.ones(1, 12, 8), (3, 4), (7, 9), by_scale)
    torch.testing.assert_close(constant, torch.ones(1, 63, 8))
    # Rows stay rows: a table that depends on the column alone does so at any size.
    columns = torch.arange(4.0).repeat(3)[None, :, None]
    maps = resize_position_table(columns, (3, 4), (6, 8), by_scale).reshape(6, 8)
    torch.testing.assert_close(maps, maps[:1].expand(6, -1))
    assert (maps[0].diff() > 0).all()


def test_scale_factor_and_size_place_samples_differently():
    """Two stages of the detection protocol: the same grid, slightly different values."""
    table = torch.randn(1, 16, 8)
    difference = resize_position_table(table, (4, 4), (6, 6), True) - resize_position_table(table, (4, 4), (6, 6))
    assert 1e-3 < difference.abs().max() < 0.5


def test_trunc_normal():
    """N(0, 0.02) cut at one standard deviation has a standard deviation of 0.02 * sqrt(1 - 2 phi(1) / (2 Phi(1) - 1)) = 0.0108."""
    x = trunc_normal_(torch.empty(200_000))
    assert x.abs().max() <= 0.02
    assert x.abs().max() > 0.0199
    assert x.std().item() == pytest.approx(0.0108, abs=1e-4)
    assert x.mean().item() == pytest.approx(0, abs=1e-4)


def encoder(**settings):
    return CAEViT(dict(embed_dims=128, num_layers=3, num_heads=4), img_size=64, **settings)


def assert_common_start(stack):
    """What both styles have in common."""
    for name, module in stack.named_modules():
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all() and (module.bias == 0).all()
        if isinstance(module, nn.Linear) and module.bias is not None and name != 'project.0':
            assert (module.bias == 0).all(), name
        if isinstance(module, nn.Conv2d):
            assert module.weight.abs().max() <= 0.02 and (module.bias == 0).all()
            assert module.weight.std().item() == pytest.approx(0.0108, rel=0.03)
    for name, parameter in stack.named_parameters():
        if name.endswith(('q_bias', 'v_bias', 'relative_position_bias_table')):
            assert (parameter == 0).all(), name
        if name.endswith(('cls_token', 'mask_token')):
            assert 0 < parameter.abs().max() <= 0.02
        if 'gamma' in name:
            assert (parameter == 0.1).all()


@pytest.mark.parametrize('make', [lambda: encoder(use_rel_pos_bias=True), lambda: LatentContextualRegressor(64, 128, 3, 4)])
def test_xavier_start(make):
    stack = make()
    init_stack(stack, 'xavier')
    assert_common_start(stack)
    for name, module in stack.named_modules():
        if isinstance(module, nn.Linear):
            # The fused projection counts as one matrix with 3 C outputs.
            bound = math.sqrt(6 / sum(module.weight.shape))
            assert 0.99 * bound < module.weight.abs().max() <= bound, name
            assert module.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03), name
    if hasattr(stack, 'project'):
        assert (stack.project[0].bias == 0).all()


@pytest.mark.parametrize('make', [encoder, lambda: LatentContextualRegressor(64, 128, 3, 4)])
def test_beit_start(make):
    stack = make()
    init_stack(stack, 'beit')
    assert_common_start(stack)
    endings = {}
    for depth, block in enumerate(stack.blocks, 1):
        endings |= {block.attn.proj: depth, block.mlp.fc2: depth}
    for name, module in stack.named_modules():
        if isinstance(module, nn.Linear) and name != 'project.0':
            factor = math.sqrt(2 * endings[module]) if module in endings else 1
            assert module.weight.abs().max() <= 0.02 / factor + 1e-9, name
            assert module.weight.std().item() == pytest.approx(0.0108 / factor, rel=0.03), name
    if hasattr(stack, 'project'):
        # torch's own start: uniform within 1 / sqrt(inputs), the bias too.
        assert 0.02 < stack.project[0].weight.abs().max() <= 1 / 8 and stack.project[0].bias.abs().max() > 0


def test_unknown_start():
    with pytest.raises(ValueError, match="'xavier' or 'beit', got 'kaiming'"):
        init_stack(encoder(), 'kaiming')
