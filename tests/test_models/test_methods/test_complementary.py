"""Complementary masks: one step equals two ordinary passes, with a mask and with its complement."""

import pytest
import torch
from mmpretrain.structures import DataSample

from mmcae.models import CAE, CAEv2
from mmcae.registry import MODELS
from mmcae.utils.errors import ConfigError, DataError

ENCODER = dict(type='mmcae.CAEViT', arch=dict(embed_dims=48, num_layers=3, num_heads=4), img_size=64)
LATENT = dict(embed_dims=32, num_layers=2, num_heads=4)
PARTS = dict(backbone=ENCODER, regressor=dict(type='mmcae.LatentContextualRegressor', in_dims=48, **LATENT))
STATISTICS = dict(type='mmcae.ViewPreprocessor', mean=[127.5] * 3, std=[127.5] * 3)
OWN = dict(type='mmcae.CAEViT', arch=dict(embed_dims=20, num_layers=1, num_heads=2), img_size=64)
PIXELS = dict(type='mmcae.PixelTargets', patch_size=8)
METHODS = {
    'cae': dict(type='mmcae.CAE', decoder=dict(type='mmcae.CAEDecoder', **LATENT), target_generator=PIXELS),
    'cae without alignment': dict(
        type='mmcae.CAE', decoder=dict(type='mmcae.CAEDecoder', **LATENT), target_generator=PIXELS, align_loss_weight=0
    ),
    'cae with a teacher': dict(
        type='mmcae.CAE', decoder=dict(type='mmcae.CAEDecoder', **LATENT), target_generator=dict(type='mmcae.Teacher', model=OWN)
    ),
    'cae v2': dict(type='mmcae.CAEv2', target_generator=dict(type='mmcae.Teacher', model=OWN)),
}


def build(method, **settings):
    torch.manual_seed(0)
    config = {**METHODS[method], **PARTS, **settings}
    if 'decoder' in config:
        config['decoder'] = dict(config['decoder'], num_outputs=None)
    if config['target_generator']['type'] == 'mmcae.Teacher':
        config['data_preprocessor'] = STATISTICS
    model = MODELS.build(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.double()


def batch(masked=8):
    torch.manual_seed(1)
    mask = torch.rand(3, 16).argsort(dim=1) < masked
    return [torch.randn(3, 3, 64, 64, dtype=torch.float64), torch.rand(3, 3, 32, 32, dtype=torch.float64)], mask


def samples_of(mask):
    return [DataSample(mask=row.reshape(4, 4)) for row in mask]


def gradients(model, losses):
    model.zero_grad()
    sum(value for name, value in losses.items() if 'loss' in name).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize('method', METHODS)
def test_equals_two_ordinary_passes(method):
    """Losses and gradients are the means of the two; the alignment target is computed without gradient in both forms."""
    model, (views, mask) = build(method), batch()
    ordinary = [model.loss(views, samples_of(one)) for one in (mask, ~mask)]
    expected = {name: (ordinary[0][name] + ordinary[1][name]) / 2 for name in ordinary[0]}
    wanted = gradients(model, expected)
    model.complementary = True
    losses = model.loss(views, samples_of(mask))
    assert set(losses) == set(expected)
    for name, value in losses.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-12)
    found = gradients(model, losses)
    assert set(found) == set(wanted)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize('method', ['cae', 'cae with a teacher', 'cae v2'])
def test_what_it_saves(method, monkeypatch):
    """One pass of the encoder over both halves, none for the alignment; the target looks at each image once."""
    model, (views, mask) = build(method, complementary=True), batch()
    encoder, target = model.backbone.encode, model.target_generator
    embed = 'tokens' if method == 'cae v2' else 'embed'
    calls = dict(encoder=[], target=[])
    monkeypatch.setattr(model.backbone, 'encode', lambda images, index=None: calls['encoder'].append(len(images)) or encoder(images, index))
    looked = getattr(target, embed)
    monkeypatch.setattr(target, embed, lambda images: calls['target'].append(len(images)) or looked(images))
    model.loss(views, samples_of(mask))
    assert calls == dict(encoder=[6], target=[3])


def test_of_the_authors_classes():
    assert [type(build(method)) for method in METHODS] == [CAE, CAE, CAE, CAEv2]


@pytest.mark.parametrize('masked', [7, 10])
@pytest.mark.parametrize('method', ['cae', 'cae v2'])
def test_another_ratio(method, masked):
    model, (views, mask) = build(method, complementary=True), batch(masked)
    with pytest.raises(DataError, match=f'Complementary masks hide one half of the patches; these hide {masked} of 16'):
        model.loss(views, samples_of(mask))
    sample = samples_of(mask)[0]
    model.check_sample([view[0] for view in batch()[0]], samples_of(batch()[1])[0])
    with pytest.raises(ConfigError, match='Complementary masks.* set num_masked or ratio of the mask generator, or complementary=False'):
        model.check_sample([view[0] for view in views], sample)
