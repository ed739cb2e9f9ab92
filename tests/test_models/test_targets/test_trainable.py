"""The tokenizers that people train: they learn, survive the way through a checkpoint, and say what does not fit."""

import re

import pytest
import torch

from mmcae.models import DiscreteVAE, PatchCodebook
from mmcae.utils.errors import CheckpointError

SMALL = dict(vocab_size=32, channels=(8, 16, 16), num_blocks=1, code_dim=8)


def fit(model, images, steps, lr):
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    logs = []
    for _ in range(steps):
        terms = model.training_loss(images)
        loss = sum(value for name, value in terms.items() if 'loss' in name)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        logs.append({name: value.item() for name, value in terms.items()})
    return logs


def error(drawn, images):
    return (drawn - images).square().mean().item()


def test_vae_learns_to_draw(images):
    model = DiscreteVAE(**SMALL)
    logs = fit(model, images, 200, 4e-3)
    model.eval()
    ids = model.tokenize(images)
    drawn = model.decode(ids)
    assert drawn.shape == images.shape and drawn.min() >= 0 and drawn.max() <= 1
    assert error(drawn, images) < 0.5 * images.var()
    assert logs[-1]['loss_reconstruction'] == pytest.approx(error(drawn, images) / images.var().item(), rel=0.2)
    assert logs[-1]['perplexity'] > 10 and logs[-1]['codebook_usage'] > 0.8
    # What is drawn depends on the ids, position by position.
    shuffled = model.decode(ids.flatten()[torch.randperm(ids.numel())].view_as(ids))
    assert error(shuffled, images) > 1.5 * error(drawn, images)


def test_vae_on_empty_images():
    """A batch without any contrast must not end a run."""
    terms = DiscreteVAE(**SMALL).training_loss(torch.full((2, 3, 16, 16), 0.5))
    assert all(value.isfinite() for value in terms.values())


def test_vae_gradients_pass_the_codebook(images):
    model = DiscreteVAE(**SMALL)
    model.training_loss(images)['loss_reconstruction'].backward()
    assert model.down[0].weight.grad.abs().sum() > 0
    assert model.quantizer.codes.grad is None or model.quantizer.codes.grad.abs().sum() == 0
    model.zero_grad()
    model.training_loss(images)['loss_codebook'].backward()
    assert model.quantizer.codes.grad.abs().sum() > 0
    assert model.down[0].weight.grad is None or model.down[0].weight.grad.abs().sum() == 0


@pytest.mark.parametrize('channels', [(8,), (8, 8), (8, 8, 8, 8)])
def test_vae_at_other_resolutions(channels):
    model = DiscreteVAE(**dict(SMALL, channels=channels, in_channels=1))
    images = torch.rand(2, 1, 32, 64)
    model.training_loss(images)
    step = 2 ** len(channels)
    assert model.downsample == (step, step)
    assert model.decode(model.tokenize(images)).shape == images.shape


def test_codebook_learns_patterns(images):
    model = PatchCodebook(vocab_size=40)
    logs = fit(model, images, 100, 0.02)
    assert logs[-1]['loss_codebook'] < min(0.05, logs[0]['loss_codebook'])
    ids = model.tokenize(images)
    grey = images.mean(1, keepdim=True)
    drawn = model.decode(ids, reference=images)
    flat = torch.nn.functional.avg_pool2d(grey, 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert drawn.shape == images.shape
    assert error(drawn.mean(1, keepdim=True), grey) < 0.3 * error(flat, grey)
    without = model.decode(ids)
    assert without.shape == grey.shape and without.min() >= 0 and without.max() <= 1


def test_codebook_is_blind_to_colour_and_brightness(images):
    model = PatchCodebook(vocab_size=40, contrast=0.01)
    fit(model, images, 30, 0.02)
    other = images.mean(1, keepdim=True) * torch.tensor([0.5, 1.2, 0.4]).view(1, 3, 1, 1) + torch.tensor([0.1, 0.0, 0.3]).view(1, 3, 1, 1)
    assert (model.tokenize(images) == model.tokenize(other)).float().mean() > 0.95


def test_codebook_sees_flat_patches_as_one(images):
    """Noise below `contrast` makes no targets; above, it does."""
    model = PatchCodebook(vocab_size=40, contrast=0.05)
    noise = 0.5 + 0.1 * torch.randn(4, 3, 32, 48)
    faint = 0.3 + 0.2 * (noise - 0.5)
    fit(model, torch.cat((images, noise, faint)), 100, 0.02)
    assert len(model.tokenize(faint).unique()) == 1
    assert len(model.tokenize(noise).unique()) > 3 and len(model.tokenize(images).unique()) > 10


@pytest.mark.parametrize('kind', [DiscreteVAE, PatchCodebook])
def test_through_a_checkpoint(kind, images, tmp_path):
    sizes = SMALL if kind is DiscreteVAE else dict(vocab_size=20, patch_size=16)
    model = kind(**sizes)
    fit(model, images, 3, 1e-3)
    torch.save(dict(state_dict=model.state_dict(), optimizer={}), tmp_path / 'iter_3.pth')
    expected = model.tokenize(images)

    loaded = kind(checkpoint=tmp_path / 'iter_3.pth')
    assert torch.equal(loaded.tokenize(images), expected)
    assert torch.equal(loaded.decode(expected), model.decode(expected))
    assert loaded.vocab_size == model.vocab_size and loaded.downsample == model.downsample
    assert loaded.frozen and not loaded.train().training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.equal(kind(**sizes, checkpoint=tmp_path / 'iter_3.pth').tokenize(images), expected)
    with pytest.raises(CheckpointError, match=f'vocab_size={model.vocab_size}, but the config says 7'):
        kind(vocab_size=7, checkpoint=tmp_path / 'iter_3.pth')


def test_wrong_checkpoints(images, tmp_path):
    vae, codebook = DiscreteVAE(**SMALL), PatchCodebook()
    torch.save(vae.state_dict(), tmp_path / 'vae.pth')
    torch.save(codebook.state_dict(), tmp_path / 'codebook.pth')
    with pytest.raises(CheckpointError, match='holds no DiscreteVAE: its keys begin with quantizer.codes'):
        DiscreteVAE(checkpoint=tmp_path / 'codebook.pth')
    with pytest.raises(CheckpointError, match='holds no PatchCodebook'):
        PatchCodebook(checkpoint=tmp_path / 'vae.pth')
    with pytest.raises(CheckpointError, match=f'{re.escape(str(tmp_path / "none.pth"))}.*mmcae train'):
        DiscreteVAE(checkpoint=tmp_path / 'none.pth')
    with pytest.raises(CheckpointError, match='never trained'):
        DiscreteVAE(checkpoint=tmp_path / 'vae.pth').tokenize(images)
    state = vae.state_dict()
    state.pop('decoder.0.1.weight')
    torch.save(state, tmp_path / 'half.pth')
    with pytest.raises(CheckpointError, match='decoder.0.1.weight'):
        DiscreteVAE(checkpoint=tmp_path / 'half.pth')


@pytest.mark.parametrize('model', [DiscreteVAE(**SMALL), PatchCodebook()])
def test_uint8_in_training(model, images):
    """The model's own preprocessor normalises as the targets' is to do, so that training and use see the same images."""
    batch = model.data_preprocessor(dict(inputs=(images * 255).byte(), data_samples=[]), training=True)
    assert torch.equal(batch['inputs'], (images * 255).byte().float() / 255)
    assert {'perplexity', 'codebook_usage'} < set(model(**batch, mode='loss'))
    assert model(**batch).shape == (4, 4, 6)
    with pytest.raises(ValueError, match='predict'):
        model(**batch, mode='predict')
