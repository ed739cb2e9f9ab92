"""The decoder: its arguments, and that masked patches see each other and nothing else."""

import pytest
import torch
from torch import nn

from mmcae.models import CAEDecoder


def make(**settings):
    torch.manual_seed(0)
    return CAEDecoder(**{**dict(embed_dims=16, num_outputs=10, num_layers=2, num_heads=2), **settings}).eval()


@torch.no_grad()
def test_forward():
    model = make()
    latents, positions = torch.randn(2, 3, 16), torch.randn(2, 3, 16)
    out = model(latents, positions)
    x = latents + positions  # once, before the first block
    for block in model.blocks:
        x = block(x)
    torch.testing.assert_close(out, model.head(model.norm(x)))
    assert out.shape == (2, 3, 10)
    torch.testing.assert_close(model(latents.flip(1), positions.flip(1)), out.flip(1))
    assert not torch.allclose(model(latents[:, :2], positions[:, :2]), out[:, :2])


@torch.no_grad()
def test_without_blocks():
    model = make(num_layers=0)
    latents, positions = torch.randn(2, 3, 16), torch.randn(2, 3, 16)
    torch.testing.assert_close(model(latents, positions), model.head(nn.functional.layer_norm(latents + positions, (16,), eps=1e-6)))


def test_arguments():
    model = make(num_layers=3, num_heads=4, feedforward_channels=20, drop_path_rate=0.2, layer_scale_init_value=1e-5)
    assert [getattr(b.drop_path, 'drop_prob', 0) for b in model.blocks] == pytest.approx([0, 0.1, 0.2])
    assert model.blocks[0].attn.num_heads == 4
    assert model.blocks[0].mlp.fc1.out_features == 20
    assert (model.blocks[2].gamma_1 == 1e-5).all()
    assert make(layer_scale_init_value=0).blocks[0].gamma_1 is None
    assert (model.head.bias == 0).all()
