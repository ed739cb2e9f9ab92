"""LoRA: nothing changes at the start, the updates alone learn, and a checkpoint that is read has them in its weights."""

import pytest
import torch

from mmcae.apis import load_encoder
from mmcae.checkpoints import metadata, write_state_dict
from mmcae.checkpoints.low_rank import merge_low_rank
from mmcae.models import CAEViT, TimmEncoder
from mmcae.registry import MODELS
from mmcae.utils.errors import ConfigError

ENCODERS = {
    'cae': dict(type='mmcae.CAEViT', arch=dict(embed_dims=32, num_layers=3, num_heads=2), img_size=64),
    'vit': dict(type='mmcae.TimmEncoder', model_name='vit_small_patch16_224', depth=3, embed_dim=32, num_heads=2, img_size=64),
    'dinov3': dict(type='mmcae.TimmEncoder', model_name='vit_small_patch16_dinov3', depth=3, embed_dim=32, num_heads=2, img_size=64),
}


@pytest.fixture(params=list(ENCODERS))
def pair(request, tmp_path):
    """An encoder, and one with LoRA that starts from its file."""
    plain = MODELS.build(ENCODERS[request.param]).eval()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    write_state_dict(tmp_path / 'plain.pth', plain.state_dict(), metadata(plain.spec))

    def with_lora(**settings):
        init = dict(type='Pretrained', checkpoint=str(tmp_path / 'plain.pth'))
        encoder = MODELS.build({**ENCODERS[request.param], 'init_cfg': init, **settings})
        encoder.init_weights()
        return encoder.eval()

    return plain, with_lora


def test_starts_as_the_encoder_and_learns_by_its_updates(pair, tmp_path):
    plain, with_lora = pair
    encoder, images = with_lora(lora=dict(rank=4, alpha=8.0, layers='all'), frozen_stages=1), torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(encoder.encode(images), plain.encode(images))
    trained = {name: parameter for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert all(name.endswith(('.up', '.down')) for name in trained)
    assert {encoder.get_layer_depth(name)[0] for name in trained} == {2, 3}
    optimizer = torch.optim.SGD(trained.values(), 0.01)
    for _ in range(2):
        optimizer.zero_grad()
        (encoder.train().encode(images) * torch.linspace(-1, 1, 32)).sum().backward()
        assert all(parameter.grad is not None for parameter in trained.values())
        optimizer.step()
    with torch.no_grad():
        learnt = encoder.eval().encode(images)
        assert not torch.allclose(learnt, plain.encode(images), atol=1e-4)
        write_state_dict(tmp_path / 'x.pth', encoder.state_dict(), metadata(encoder.spec))
        merged = load_encoder(tmp_path / 'x.pth')
        assert set(merged.state_dict()) == set(plain.state_dict())
        torch.testing.assert_close(merged.encode(images), learnt, rtol=1e-5, atol=1e-5)


def test_goes_on_with_what_it_learnt(pair):
    """A run that is resumed has the updates beside the weights."""
    _, with_lora = pair
    first, second = (with_lora(lora=dict(rank=2)) for _ in range(2))
    for name, parameter in first.named_parameters():
        if name.endswith('.up'):
            torch.nn.init.normal_(parameter)
    second.load_state_dict(first.state_dict())
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(second.encode(images), first.encode(images))


def test_merging_by_hand():
    weight, up, down = torch.randn(4, 6), torch.randn(4, 2), torch.randn(2, 6)
    parts = {'up': up, 'down': down, 'scale': torch.tensor(1.5)}
    state = {
        'a.parametrizations.weight.original': weight,
        'a.bias': weight[0],
        **{f'a.parametrizations.weight.0.{k}': v for k, v in parts.items()},
    }
    merged = merge_low_rank(state)
    assert set(merged) == {'a.weight', 'a.bias'}
    torch.testing.assert_close(merged['a.weight'], weight + 1.5 * up @ down)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(lora=dict(rank=0)), 'lora.rank=0 must be a whole number, at least 1'),
        (dict(lora=dict(rank=32)), r'lora.rank=32 is no less than a layer of'),
        (dict(lora=dict(layers='mlp')), "lora.layers='mlp' is none of"),
        (dict(lora=dict(alpha=0)), 'lora.alpha=0 must be a number above 0'),
        (dict(lora=dict(alpha='16')), "lora.alpha='16' must be a number"),
        (dict(lora=8), 'lora=8 must be a dict'),
        (dict(lora=dict(r=4)), 'lora has no r; it has rank, alpha, layers'),
        (dict(lora={}, frozen_stages=3), 'lora finds no layer'),
        (dict(lora={}, init_cfg=None), 'lora updates weights that are there'),
    ],
)
def test_bad_settings(pair, settings, message):
    with pytest.raises(ConfigError, match=message):
        pair[1](**settings)


def test_without_lora_nothing_is_parametrised():
    for encoder in (CAEViT(ENCODERS['cae']['arch'], img_size=64), TimmEncoder(**{k: v for k, v in ENCODERS['vit'].items() if k != 'type'})):
        assert not any('parametrizations' in name for name in encoder.state_dict())


def test_projections_that_are_fused_with_the_mlp():
    """timm's parallel blocks have one layer for queries, keys, values and the MLP."""
    settings = dict(depth=1, embed_dim=32, num_heads=2, img_size=32, init_cfg=dict(type='Pretrained', checkpoint='none.pth'))
    names = [name for name, _ in TimmEncoder('vit_base_patch16_xp_224', lora=dict(rank=2), **settings).named_parameters() if '.up' in name]
    assert [name.split('.')[3] for name in names] == ['in_proj', 'attn_out_proj']
