"""What every encoder promises (mmcae/models/encoders/base.py), checked for both classes."""

import pytest
import torch
from torch import nn

from mmcae.models import CAEViT, Encoder, TimmEncoder
from mmcae.registry import MODELS
from mmcae.utils.errors import ConfigError

SMALL = dict(depth=3, embed_dim=32, num_heads=2, img_size=64)
ENCODERS = {
    'cae': lambda **settings: CAEViT(arch=dict(embed_dims=32, num_layers=3, num_heads=2), img_size=64, **settings),
    'vit': lambda **settings: TimmEncoder('vit_small_patch16_224', **SMALL, **settings),
    'registers': lambda **settings: TimmEncoder('vit_small_patch14_reg4_dinov2', **SMALL, patch_size=16, **settings),
    'rotary': lambda **settings: TimmEncoder('vit_small_patch16_dinov3', **SMALL, **settings),
    'no cls': lambda **settings: TimmEncoder('vit_base_patch16_siglip_224', **SMALL, **settings),
}


@pytest.fixture(params=list(ENCODERS))
def make(request):
    def build(**settings):
        torch.manual_seed(0)
        encoder = ENCODERS[request.param](**settings)
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        return encoder.eval()

    return build


def images(*size):
    torch.manual_seed(1)
    return torch.randn(2, 3, *(size or (64, 64)))


def picked(count=7, patches=16):
    return torch.stack([torch.randperm(patches)[:count] for _ in range(2)])


def test_attributes(make):
    encoder = make()
    assert isinstance(encoder, Encoder)
    assert (encoder.embed_dims, encoder.num_layers, encoder.patch_size, encoder.grid, encoder.in_channels) == (32, 3, (16, 16), (4, 4), 3)
    assert len(encoder.blocks) == 3 and isinstance(encoder.norm, nn.Module)
    assert encoder.has_cls == (encoder.num_prefix_tokens > 0)


@torch.no_grad()
def test_encode_gives_prefix_and_patches_in_the_order_of_the_index(make):
    encoder, x = make(), images()
    prefix = encoder.num_prefix_tokens
    whole = encoder.encode(x)
    assert whole.shape == (2, prefix + 16, 32)
    index = picked(16)
    shuffled = encoder.encode(x, index)
    torch.testing.assert_close(shuffled[:, :prefix], whole[:, :prefix], rtol=1e-5, atol=1e-5)
    rows = torch.arange(2)[:, None]
    torch.testing.assert_close(shuffled[:, prefix:], whole[:, prefix:][rows, index], rtol=1e-5, atol=1e-5)
    assert encoder.encode(x, picked(3)).shape == (2, prefix + 3, 32)


@torch.no_grad()
def test_encode_does_not_see_the_other_patches(make):
    encoder, x = make(), images()
    index = picked(5)
    hidden = x.unflatten(3, (4, 16)).unflatten(2, (4, 16)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2).clone()
    for sample, kept in zip(hidden, index, strict=True):
        gone = [n for n in range(16) if n not in kept.tolist()]
        sample[gone] = 100.0
    other = hidden.unflatten(1, (4, 4)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    torch.testing.assert_close(encoder.encode(other, index), encoder.encode(x, index))
    assert not torch.allclose(encoder.encode(other), encoder.encode(x), atol=1e-2)


@torch.no_grad()
def test_outputs(make):
    x = images(48, 80)
    raw = make(out_type='raw')(x)[0]
    encoder = make(out_type='featmap', out_indices=(0, 1, -1))
    prefix = encoder.num_prefix_tokens
    torch.testing.assert_close(raw, encoder.encode(x))
    maps = encoder(x)
    assert [m.shape for m in maps] == [(2, 32, 3, 5)] * 3 and all(m.is_contiguous() for m in maps)
    torch.testing.assert_close(maps[2].flatten(2).transpose(1, 2), raw[:, prefix:])
    tokens, grid, context = encoder.embed(x)
    assert grid == encoder.grid_of((48, 80)) == (3, 5)
    torch.testing.assert_close(maps[0].flatten(2).transpose(1, 2), encoder.blocks[0](tokens, *context[0])[:, prefix:])
    assert make(out_type='avg_featmap')(x)[0].shape == (2, 32)
    if encoder.has_cls:
        torch.testing.assert_close(make(out_type='cls_token')(x)[0], raw[:, 0])
    else:
        with pytest.raises(ConfigError, match="no cls token; set out_type='avg_featmap'"):
            make(out_type='cls_token')


def test_gradients_reach_everything_and_checkpointing_changes_none(make):
    gradients = []
    for with_cp in (False, True):
        encoder = make(with_cp=with_cp, out_type='raw').train()
        encoder.encode(images(), picked()).square().sum().backward()
        assert all(p.grad is not None for p in encoder.parameters() if p.requires_grad)
        gradients.append([p.grad for p in encoder.parameters() if p.requires_grad])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_sizes_that_patches_do_not_tile_name_one_that_fits(make):
    with pytest.raises(ConfigError, match=r'100x64 pixels .* not tiled by patches of 16x16: .* such as 96x64'):
        make().encode(images(100, 64))


def test_layers_of_parameters(make):
    encoder = make()
    depths = {name: encoder.get_layer_depth(f'backbone.{name}', 'backbone.') for name, _ in encoder.named_parameters()}
    assert {total for _, total in depths.values()} == {5}
    assert {layer for layer, _ in depths.values()} == {0, 1, 2, 3, 4}
    assert all(layer == int(name.split('blocks.')[1].split('.')[0]) + 1 for name, (layer, _) in depths.items() if 'blocks.' in name)
    assert all(layer == 0 for name, (layer, _) in depths.items() if 'patch_embed' in name or name.endswith(('_token', 'pos_embed')))
    assert encoder.get_layer_depth('head.weight', 'backbone.') == (4, 5)


@pytest.mark.parametrize('stages', [-1, 0, 2, 3])
def test_frozen_stages(make, stages):
    encoder = make(frozen_stages=stages).train()
    for name, parameter in encoder.named_parameters():
        layer = encoder.get_layer_depth(name)[0]
        assert parameter.requires_grad == (layer > stages and not (stages == 3)), name
    assert [block.training for block in encoder.blocks] == [number >= stages for number in range(3)]


def test_what_no_output_needs_is_not_trained(make):
    encoder = make(out_type='featmap', out_indices=(0, 1)).train()
    sum(m.square().sum() for m in encoder(images())).backward()
    for name, parameter in encoder.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad == (encoder.get_layer_depth(name)[0] < 3), name


@torch.no_grad()
def test_spec_builds_it_anew(make):
    encoder = make()
    spec = type(encoder.spec).from_dict(encoder.spec.to_dict(), 'a file')
    again = MODELS.build(spec.config()).eval()
    again.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(again.encode(images()), encoder.encode(images()))
    assert again.spec == encoder.spec


@torch.no_grad()
def test_weights_fit_another_grid(make):
    encoder = make()
    spec = encoder.spec
    arguments = {**spec.config(), 'img_size': 96}
    larger = MODELS.build(arguments).eval()
    larger.load_state_dict(larger.fit_state_dict(encoder.state_dict(), spec))
    assert larger.grid == (6, 6)
    difference = larger.encode(images(64, 64)) - encoder.encode(images(64, 64))
    assert difference.abs().mean() < 0.2  # tables resized there and back, nothing random


@pytest.mark.parametrize('settings', [dict(frozen_stages=3), dict(out_indices=1)])
def test_what_cannot_be_pretrained(make, settings):
    make().check_pretrainable()
    with pytest.raises(ConfigError, match='cannot be pretrained'):
        make(out_type='raw', **settings).check_pretrainable()
