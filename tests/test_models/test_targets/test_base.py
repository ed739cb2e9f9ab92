"""What every tokenizer keeps to, whatever its targets are."""

import pytest
import torch

from mmcae.models import CAE, DALLETokenizer, DiscreteVAE, PatchCodebook, PixelTargets
from mmcae.models.targets.base import Tokenizer
from mmcae.models.targets.dalle import Encoder
from mmcae.registry import MODELS
from mmcae.utils.errors import ConfigError


def openai_names(state):
    """DALL-E's weights under the names that OpenAI and mmpretrain give them."""
    renamed = {key.replace('output.', 'blocks.output.conv.'): value for key, value in state.items()}
    return {key.replace('.weight', '.w').replace('.bias', '.b'): value for key, value in renamed.items()}


def make_dalle(folder):
    torch.save(openai_names(Encoder(hidden=16, blocks_per_group=1, vocab_size=24).state_dict()), folder / 'dalle.pth')
    return dict(type='mmcae.DALLETokenizer', checkpoint=str(folder / 'dalle.pth'))


def make_vae(folder):
    model = DiscreteVAE(vocab_size=12, channels=(4, 8, 8), num_blocks=1, code_dim=6)
    model.training_loss(torch.rand(2, 3, 32, 32))
    torch.save(dict(state_dict=model.state_dict()), folder / 'vae.pth')
    return dict(type='mmcae.DiscreteVAE', checkpoint=str(folder / 'vae.pth'))


def make_codebook(folder):
    model = PatchCodebook(vocab_size=10, patch_size=8)
    model.training_loss(torch.rand(2, 3, 32, 32))
    torch.save(dict(state_dict=model.state_dict()), folder / 'codebook.pth')
    return dict(type='mmcae.PatchCodebook', checkpoint=str(folder / 'codebook.pth'))


def make_pixels(folder):
    return dict(type='mmcae.PixelTargets', patch_size=8)


def make_teacher(folder):
    model = dict(type='mmcae.CAEViT', arch=dict(embed_dims=16, num_layers=1, num_heads=2), img_size=(32, 48), patch_size=8)
    return dict(type='mmcae.Teacher', model=model, mean=0, std=255)


MAKERS = dict(dalle=make_dalle, vae=make_vae, codebook=make_codebook, pixels=make_pixels, teacher=make_teacher)


@pytest.fixture(params=MAKERS)
def tokenizer(request, tmp_path):
    return MODELS.build(MAKERS[request.param](tmp_path))


def test_targets_of_some_patches_are_those_of_all(tokenizer, images):
    everything = tokenizer.tokenize(images)
    if isinstance(tokenizer, Tokenizer):
        assert everything.shape == (4, 4, 6) and everything.dtype == torch.int64
        assert 0 <= everything.min() and everything.max() < tokenizer.vocab_size == tokenizer.num_outputs
        everything = everything.flatten(1)
    else:
        assert everything.shape == (4, 24, tokenizer.num_outputs) and everything.is_floating_point()
    index = torch.stack([torch.randperm(24)[:7] for _ in range(4)])
    picked = tokenizer.targets(images, index)
    assert picked.dtype == everything.dtype
    for sample in range(4):
        torch.testing.assert_close(picked[sample], everything[sample][index[sample]])


def test_targets_are_those_of_single_images(tokenizer, images):
    together = tokenizer.tokenize(images)
    torch.testing.assert_close(torch.cat([tokenizer.tokenize(image[None]) for image in images]), together)


def test_no_gradient_and_no_autocast(tokenizer, images):
    index = torch.arange(24).expand(4, -1)
    expected = tokenizer.targets(images, index)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        targets = tokenizer.targets(images.requires_grad_(), index)
        assert torch.equal(tokenizer.tokenize(images).flatten(), expected.flatten())
    assert torch.equal(targets, expected) and not targets.requires_grad


def test_wrong_views_are_named(tokenizer):
    tokenizer.check_view((32, 48), (4, 6))
    with pytest.raises(ConfigError, match=r'size of the second view to \(32, 48\)'):
        tokenizer.check_view((48, 32), (4, 6))
    with pytest.raises(ConfigError, match='multiples of 8x8 pixels, got 36x48'):
        tokenizer.tokenize(torch.rand(1, 3, 36, 48))
    with pytest.raises(ConfigError, match='multiples of 8x8 pixels, got 36x48'):
        tokenizer.targets(torch.rand(1, 3, 36, 48), torch.zeros(1, 1, dtype=torch.int64))


@pytest.mark.parametrize('maker', MAKERS.values(), ids=MAKERS)
def test_inside_cae(maker, tmp_path, images):
    """Never trained, in eval mode, not in the checkpoint, and the loss goes to the other parts."""
    sizes = dict(embed_dims=16, num_heads=2)
    config = maker(tmp_path)
    second = dict(second_mean=[DALLETokenizer.mean], second_std=[DALLETokenizer.std]) if maker is make_dalle else {}
    model = CAE(
        backbone=dict(type='mmcae.CAEViT', arch=dict(num_layers=1, **sizes), img_size=(32, 48), patch_size=8),
        regressor=dict(type='mmcae.LatentContextualRegressor', in_dims=16, num_layers=1, **sizes),
        decoder=dict(type='mmcae.CAEDecoder', num_layers=1, **sizes),
        target_generator=config,
        data_preprocessor=dict(type='mmcae.ViewPreprocessor', mean=[0], std=[255], **second),
    )
    model.init_weights()
    model.train()
    tokenizer = model.target_generator
    before = {key: value.clone() for key, value in tokenizer.state_dict().items()}
    assert not any(module.training for module in tokenizer.modules())
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())
    assert not any(key.startswith('target_generator') for key in model.state_dict())

    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[:2] = True
    from mmpretrain.structures import DataSample

    if not tokenizer.reads_encoder_view:
        with pytest.raises(ConfigError, match='second view'):
            model.loss([images, images[..., :40]], [DataSample().set_mask(mask) for _ in range(4)])

    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], 0.1)
    losses = []
    for _ in range(5):
        terms = model.loss([images, images], [DataSample().set_mask(mask) for _ in range(4)])
        loss = sum(value for name, value in terms.items() if 'loss' in name)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(value, before[key]) for key, value in tokenizer.state_dict().items())


@pytest.mark.parametrize('tokenizer', ['dalle', 'vae', 'codebook', 'pixels'], indirect=True)
def test_normalisation_of_the_views(tokenizer):
    """What the data preprocessor does to the second view has to be what the tokenizer was made for."""
    statistics = dict(mean=[0] * 3, std=[255] * 3, second_mean=[tokenizer.mean] * 3, second_std=[tokenizer.std] * 3)
    preprocessor = dict(type='mmcae.ViewPreprocessor', **statistics)
    tokenizer.check_preprocessor(MODELS.build(preprocessor))
    with pytest.raises(ConfigError, match=f'second_mean.*made for {tokenizer.mean:g}'):
        tokenizer.check_preprocessor(MODELS.build(dict(preprocessor, second_mean=[123.675, 116.28, 103.53])))
    with pytest.raises(ConfigError, match=f'second_std.*made for {tokenizer.std:g}'):
        tokenizer.check_preprocessor(MODELS.build(dict(preprocessor, second_std=[1, 1, 1])))


def test_pixels_of_the_views():
    pixels = torch.tensor([0.0, 128.0, 255.0])
    torch.testing.assert_close((pixels - DALLETokenizer.mean) / DALLETokenizer.std, 0.8 * pixels / 255 + 0.1)
    for own in (DiscreteVAE, PatchCodebook, PixelTargets):
        assert (own.mean, own.std) == (0, 255)
    assert PixelTargets(patch_size=(16, 8)).downsample == (16, 8)
