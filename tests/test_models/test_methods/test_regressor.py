"""The latent contextual regressor: its arguments, and what may and may not influence its predictions."""

import pytest
import torch
from torch import nn

from mmcae.models import LatentContextualRegressor


def make(**settings):
    torch.manual_seed(0)
    model = LatentContextualRegressor(**{**dict(in_dims=16, embed_dims=16, num_layers=2, num_heads=2), **settings}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.double()


@pytest.fixture
def tokens():
    """Visible latents (2, 5, 16), their positions, and the positions of three masked patches."""
    return [torch.randn(2, n, 16, dtype=torch.float64) for n in (5, 5, 3)]


@torch.no_grad()
def test_one_block_by_hand(tokens):
    visible, visible_positions, masked_positions = tokens
    model = make(num_layers=1)
    block = model.blocks[0]
    attention = block.attn
    q0 = model.mask_token.expand(2, 3, 16)
    context = torch.cat((visible, q0), dim=1)
    positions = torch.cat((visible_positions, masked_positions), dim=1)
    q = block.norm_q(q0 + masked_positions) @ attention.q.weight.T + attention.q_bias
    k = block.norm_k(context + positions) @ attention.k.weight.T
    v = block.norm_v(context) @ attention.v.weight.T + attention.v_bias  # no positions in the values
    heads = []
    for part in (slice(0, 8), slice(8, 16)):
        heads.append((q[..., part] @ k[..., part].transpose(1, 2) / 8**0.5).softmax(-1) @ v[..., part])
    x = block.norm2(q0 + block.gamma_1 * attention.proj(torch.cat(heads, -1)))
    x = x + block.gamma_2 * block.mlp(x)
    torch.testing.assert_close(model(*tokens), model.norm(x))


@torch.no_grad()
def test_masked_queries_see_each_other_and_the_visible_latents(tokens):
    model = make()
    out = model(*tokens)
    assert out.shape == (2, 3, 16)
    visible, visible_positions, masked_positions = tokens
    changed = masked_positions.clone()
    changed[:, 2] += torch.randn(16, dtype=torch.float64)
    assert not torch.allclose(model(visible, visible_positions, changed)[:, 0], out[:, 0])
    assert not torch.allclose(model(visible + torch.randn_like(visible), visible_positions, masked_positions), out)


@torch.no_grad()
def test_order_does_not_matter(tokens):
    """Predictions follow the order of the masked patches; the visible ones are a set."""
    visible, visible_positions, masked_positions = tokens
    model = make()
    out = model(*tokens)
    torch.testing.assert_close(model(visible, visible_positions, masked_positions.flip(1)), out.flip(1))
    torch.testing.assert_close(model(visible.flip(1), visible_positions.flip(1), masked_positions), out)


def test_projection_where_the_widths_differ():
    model = make(in_dims=24)
    assert [type(part) for part in model.project] == [nn.Linear, nn.LayerNorm]
    assert model.project(torch.randn(2, 5, 24, dtype=torch.float64)).shape == (2, 5, 16)
    assert model.project[1].eps == 1e-6
    assert isinstance(make().project, nn.Identity)


def test_arguments():
    model = LatentContextualRegressor(
        16, 16, num_layers=3, num_heads=4, feedforward_channels=20, drop_path_rate=0.2, layer_scale_init_value=1e-5
    )
    assert [getattr(b.drop_path, 'drop_prob', 0) for b in model.blocks] == pytest.approx([0, 0.1, 0.2])
    assert model.blocks[0].attn.num_heads == 4
    assert model.blocks[0].mlp.fc1.out_features == 20
    assert (model.blocks[2].gamma_2 == 1e-5).all()
    assert make(layer_scale_init_value=0).blocks[0].gamma_1 is None
    assert make().blocks[0].mlp.fc1.out_features == 64
    assert {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}


def test_drop_path_works_in_training_only(tokens):
    model = make(drop_path_rate=0.5)
    assert torch.equal(model(*tokens), model(*tokens))
    model.train()
    outputs = [model(*tokens) for _ in range(8)]
    assert any(not torch.equal(outputs[0], out) for out in outputs)


def test_inner_width_of_the_released_large_model():
    """12 heads on 1024 channels are 1020 wide inside; here 3 heads on 16."""
    attention = make(num_heads=3).blocks[0].attn
    assert attention.q.weight.shape == (15, 16) and attention.proj.weight.shape == (16, 15)
