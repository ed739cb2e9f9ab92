"""Windows: the attention against a slow, obvious version, against attention between all tokens, and the encoder made of both."""

import math

import pytest
import torch

from mmcae.checkpoints import load_strictly
from mmcae.checkpoints.tables import bias_table_length, resize_bias_table
from mmcae.models import CAEViT
from mmcae.models.encoders.layers import SelfAttention
from mmcae.models.encoders.relative_position import relative_position_bias
from mmcae.models.encoders.windows import merge, split, window_attention
from mmcae.utils.errors import ConfigError
from mmcae.visualization.attention import attention_maps

ARCH = dict(embed_dims=16, num_layers=4, num_heads=2)


def slow_window_attention(q, k, v, grid, window, bias=None):
    """One query at a time: which tokens it sees is written out."""
    out = torch.zeros_like(q)
    places = [None] + [(row, column) for row in range(grid[0]) for column in range(grid[1])]  # of each token; cls has none

    def in_window(place):
        """Where a patch is in its window, as an index into the bias."""
        return 1 + (place[0] % window) * window + place[1] % window if place else 0

    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i, place in enumerate(places):
                seen = [
                    j
                    for j, other in enumerate(places)
                    if place is None or other is None or all(a // window == b // window for a, b in zip(place, other, strict=True))
                ]
                scores = torch.stack([q[b, h, i] @ k[b, h, j] / math.sqrt(q.shape[-1]) for j in seen])
                if bias is not None:
                    scores = scores + torch.stack([bias[h, in_window(place), in_window(places[j])] for j in seen])
                out[b, h, i] = scores.softmax(0) @ v[b, h, seen]
    return out


@pytest.mark.parametrize('grid', [(4, 6), (5, 7), (2, 2), (1, 8), (3, 3)])
@pytest.mark.parametrize('with_bias', [False, True])
def test_attention_in_windows(grid, with_bias):
    """Windows of 3x3: grids that they tile, that they stick out of, and that are smaller than one."""
    q, k, v = torch.randn(3, 2, 2, 1 + grid[0] * grid[1], 4, dtype=torch.float64)
    bias = None
    if with_bias:
        bias = relative_position_bias(torch.randn(bias_table_length((3, 3)), 2, dtype=torch.float64), (3, 3), (3, 3))
    torch.testing.assert_close(window_attention(q, k, v, grid, 3, bias), slow_window_attention(q, k, v, grid, 3, bias))


def test_windows_are_cut_and_put_together():
    patches = torch.arange(1.0, 25).reshape(1, 1, 24, 1)  # a grid of 4 x 6
    windows = split(patches, (4, 6), 2)
    assert windows[:, 0, :, 0].tolist()[:2] == [[1, 2, 7, 8], [3, 4, 9, 10]] and len(windows) == 6
    padded = split(patches, (4, 6), 4)
    assert padded[1, 0, :, 0].tolist() == [5, 6, 0, 0, 11, 12, 0, 0, 17, 18, 0, 0, 23, 24, 0, 0]
    random = torch.randn(3, 2, 24, 5)
    for window in (1, 2, 3, 4, 5, 9):
        assert torch.equal(merge(split(random, (4, 6), window), (4, 6), window), random)


def make(img_size=(64, 96), **settings):
    torch.manual_seed(0)
    model = CAEViT(ARCH, img_size, **settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize(('size', 'window'), [((64, 64), 4), ((64, 96), 6), ((32, 64), 14), ((16, 16), 1)])
@pytest.mark.parametrize('out_type', ['cls_token', 'avg_featmap', 'featmap', 'raw'])
@torch.no_grad()
def test_a_window_as_large_as_the_image_is_global_attention(size, window, out_type):
    settings = dict(out_indices=(0, 3), out_type=out_type)
    windowed, plain = make(window_size=window, **settings), make(**settings)
    images = torch.randn(2, 3, *size)
    for found, wanted in zip(windowed(images), plain(images), strict=True):
        torch.testing.assert_close(found, wanted)
    assert windowed.state_dict().keys() == plain.state_dict().keys()


@torch.no_grad()
def test_what_a_patch_sees():
    """In a windowed block its window and the cls token; cls sees everything; in a global block everything does."""
    images = torch.randn(1, 3, 64, 96)
    changed = images.clone()
    changed[..., 48:, 64:] += 1  # the patches of the last row from the fifth column on

    def difference(**settings):
        model = make(out_type='raw', final_norm=False, out_indices=(0,), **settings)
        found = (model(images)[0] - model(changed)[0]).abs().amax(-1)[0] > 1e-6
        return found[0].item(), found[1:].reshape(4, 6)

    cls, patches = difference(window_size=2)
    wanted = torch.zeros(4, 6, dtype=torch.bool)
    wanted[2:, 4:] = True
    assert cls and torch.equal(patches, wanted)
    cls, patches = difference(window_size=2, global_blocks=(0,))
    assert cls and patches.all()


def test_which_blocks_have_windows():
    model = CAEViT(ARCH, 64, window_size=2, global_blocks=(1, 3))
    assert [block.attn.window for block in model.blocks] == [2, None, 2, None]
    assert [block.attn.window for block in CAEViT(ARCH, 64).blocks] == [None] * 4


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(global_blocks=(1,)), 'window_size=None with global_blocks'),
        (dict(window_size=0), 'set window_size to 1 or more'),
        (dict(window_size=2, global_blocks=(1, -1, 4)), r'global_blocks \[-1, 4\] name no block: this encoder has 4'),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        CAEViT(ARCH, 64, **settings)


def test_pretraining_has_no_windows():
    """The visible patches alone are no windows."""
    model = make(window_size=2)
    with pytest.raises(ConfigError, match='pretrain without window_size'):
        model.encode(torch.randn(1, 3, 64, 96), torch.tensor([[0, 5]]))
    torch.testing.assert_close(model.encode(torch.randn(1, 3, 64, 96)).shape, torch.Size([1, 25, 16]))


@pytest.mark.parametrize('bias', [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(bias):
    images, gradients = torch.randn(2, 3, 80, 112), []
    for with_cp in (False, True):
        model = make(window_size=3, global_blocks=(3,), use_rel_pos_bias=bias, with_cp=with_cp, out_type='featmap').train()
        model(images)[0].square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None and torch.isfinite(gradient).all(), name
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_training_after_inference_mode():
    """What inference leaves for later, where windows stick out and where tables are read, can be trained with."""
    model, images = make(window_size=3, use_rel_pos_bias=True, global_blocks=(1,)), torch.randn(1, 3, 80, 112)
    with torch.inference_mode():
        model(images)
    model.train()(images)[0].sum().backward()
    assert model.blocks[0].attn.relative_position_bias_table.grad.abs().sum() > 0


@torch.no_grad()
def test_mixed_precision():
    for bias in (False, True):
        model = make(window_size=3, use_rel_pos_bias=bias, out_type='raw')
        images = torch.randn(2, 3, 80, 112)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            low = model(images)[0]
        high = model(images)[0]
        assert (low.float() - high).norm() / high.norm() < 0.02


@torch.no_grad()
def test_relative_position_bias_is_learnt_for_a_window():
    model = make(window_size=3, global_blocks=(3,), use_rel_pos_bias=True)
    tables = [block.attn.relative_position_bias_table for block in model.blocks]
    assert [len(table) for table in tables] == [bias_table_length((3, 3))] * 3 + [bias_table_length((4, 6))]
    # A checkpoint for other windows and another image: each table is resized to its own block's.
    source = make(64, window_size=2, global_blocks=(3,), use_rel_pos_bias=True)
    load_strictly(model, source.state_dict(), 'test')
    for block, other in zip(model.blocks, source.blocks, strict=True):
        old, new = other.attn.relative_position_bias_table, block.attn.relative_position_bias_table
        torch.testing.assert_close(new, resize_bias_table(old, other.attn.bias_grid, block.attn.bias_grid))
    assert model.blocks[0].attn.bias_grid == (3, 3) and model.blocks[3].attn.bias_grid == (4, 6)


@torch.no_grad()
def test_attention_of_a_windowed_block_is_shown():
    """The picture of what cls looks at holds for a windowed block too, where it sees everything."""
    images = torch.randn(1, 3, 64, 96)
    for bias in (False, True):
        windowed = make(window_size=2, use_rel_pos_bias=bias)
        if bias:
            assert torch.isfinite(attention_maps(windowed, images, 0)).all()
        else:
            torch.testing.assert_close(attention_maps(windowed, images, 0), attention_maps(make(), images, 0))


@torch.no_grad()
def test_one_call_of_the_fused_attention(monkeypatch):
    """Patches in one call, cls in another: both through scaled_dot_product_attention, windows as its batch."""
    shapes = []
    fused = torch.nn.functional.scaled_dot_product_attention

    def spy(q, k, v, **settings):
        shapes.append((tuple(q.shape), tuple(k.shape)))
        return fused(q, k, v, **settings)

    monkeypatch.setattr(torch.nn.functional, 'scaled_dot_product_attention', spy)
    SelfAttention(16, 2, window=3)(torch.randn(2, 1 + 4 * 6, 16), (4, 6))
    assert shapes == [((8, 2, 9, 8), (8, 2, 10, 8)), ((2, 2, 1, 8), (2, 2, 25, 8))]
