"""CAE on images other than square RGB ones: other channels, proportions and patches, from the views to a reloaded checkpoint."""

import pytest
import torch
from mmpretrain.structures import DataSample

from mmcae.apis import load_cae, load_encoder
from mmcae.checkpoints import load_strictly, metadata_of
from mmcae.checkpoints.tables import sincos_position_table
from mmcae.models import CAE, CAEViT, ViewPreprocessor
from mmcae.registry import MODELS
from mmcae.utils.errors import CheckpointError, ConfigError

SIZES = dict(embed_dims=32, num_heads=2)


def make_cae(img_size, patch, channels):
    return CAE(
        backbone=dict(type='mmcae.CAEViT', arch=dict(num_layers=2, **SIZES), img_size=img_size, patch_size=patch, in_channels=channels),
        regressor=dict(type='mmcae.LatentContextualRegressor', in_dims=32, num_layers=1, **SIZES),
        decoder=dict(type='mmcae.CAEDecoder', num_layers=1, **SIZES),
        target_generator=dict(type='mmcae.PixelTargets', patch_size=8, in_channels=channels),
        data_preprocessor=dict(type='mmcae.ViewPreprocessor', mean=[100.0] * channels, std=[50.0]),
    )


def batch(grid, patch, channels, count=3):
    """uint8 views, the second with 8 pixels per patch, and masks of half the patches, as a dataloader gives them."""
    sizes = [tuple(side * pixels for side in grid) for pixels in (patch, 8)]
    views = [torch.randint(0, 256, (count, channels, *size), dtype=torch.uint8) for size in sizes]
    order = torch.rand(count, grid[0] * grid[1]).argsort(1)
    masks = (order < grid[0] * grid[1] // 2).view(count, *grid)
    return dict(inputs=views, data_samples=[DataSample().set_mask(mask) for mask in masks])


@pytest.mark.parametrize(('grid', 'patch', 'channels'), [((3, 4), 16, 1), ((4, 3), 8, 5), ((2, 5), 14, 2), ((4, 4), 14, 3)])
def test_pretraining(grid, patch, channels, tmp_path):
    img_size = (grid[0] * patch, grid[1] * patch)
    model = make_cae(img_size, patch, channels)
    model.init_weights()
    assert model.backbone.grid == grid and model.decoder.head.out_features == 64 * channels
    torch.testing.assert_close(model.pos_embed, sincos_position_table(grid, 32))
    data = batch(grid, patch, channels)
    model.check_sample([view[0] for view in data['inputs']], data['data_samples'][0])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 3e-3)
    losses = []
    for _ in range(15):
        terms = model(**model.data_preprocessor(data), mode='loss')
        losses.append(terms['loss_main'].item())
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
    assert losses[-1] < losses[0]

    torch.save(dict(state_dict=model.state_dict(), meta=metadata_of(model)), tmp_path / 'cae.pth')
    loaded = load_cae(tmp_path / 'cae.pth').eval()
    images, mask = model.eval().data_preprocessor(data)['inputs'][0], torch.stack([one.mask for one in data['data_samples']])
    for name, value in model.predict(images, mask).items():
        torch.testing.assert_close(loaded.predict(images, mask)[name], value)
    encoder = load_encoder(tmp_path / 'cae.pth', out_type='featmap')
    assert encoder(images)[-1].shape == (3, 32, *grid)


def test_masked_patches_are_hidden_in_rectangles_too():
    """Changing a masked patch changes no prediction, changing a visible one does."""
    model = make_cae((24, 32), 8, 1).eval()
    images, mask = torch.rand(1, 1, 24, 32), torch.zeros(1, 3, 4, dtype=torch.bool)
    mask[0, 1, 2] = mask[0, 2, 0] = True
    expected = model.predict(images, mask)['logits']
    hidden, seen = images.clone(), images.clone()
    hidden[..., 8:16, 16:24] += 1
    seen[..., 8:16, 24:32] += 1
    torch.testing.assert_close(model.predict(hidden, mask)['logits'], expected)
    assert (model.predict(seen, mask)['logits'] - expected).abs().max() > 1e-4


def test_targets_are_those_of_the_patches_in_rectangles():
    model = make_cae((24, 32), 8, 1).eval()
    view = torch.rand(1, 1, 24, 32)
    target = model.target_generator.targets(view, torch.tensor([[6, 8]]))  # row 1, column 2; row 2, column 0
    for found, patch in zip(target[0], (view[0, 0, 8:16, 16:24], view[0, 0, 16:24, :8]), strict=True):
        expected = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
        torch.testing.assert_close(found, expected.flatten())


# ---------------------------------------------------------------- weights of three channels in encoders of others


def encoder(channels):
    return CAEViT(arch=dict(num_layers=1, **SIZES), img_size=16, patch_size=8, in_channels=channels)


def test_grey_images_give_what_they_give_as_rgb():
    colour, grey = encoder(3), encoder(1)
    report = load_strictly(grey, colour.state_dict(), 'here')
    assert 'patch_embed.proj.weight adapted from 3 to 1 channels' in report and 'resized' not in report
    images = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(grey.encode(images), colour.encode(images.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize('channels', [2, 5, 6])
def test_activations_keep_their_size(channels):
    """For the same picture in all channels exactly; the weights are the three channels' in turn."""
    colour, other = encoder(3), encoder(channels)
    load_strictly(other, colour.state_dict(), 'here')
    old, new = colour.patch_embed.proj.weight, other.patch_embed.proj.weight
    for channel in range(channels):
        torch.testing.assert_close(new[:, channel], old[:, channel % 3] * 3 / channels)
    if channels == 6:
        images = torch.rand(2, 1, 16, 16)
        same = [model.encode(images.expand(-1, n, -1, -1)) for model, n in ((colour, 3), (other, 6))]
        torch.testing.assert_close(*same)


def test_only_three_channels_are_adapted():
    with pytest.raises(CheckpointError, match=r'patch_embed\.proj\.weight \(32, 4, 8, 8\) in the checkpoint, \(32, 5, 8, 8\)'):
        load_strictly(encoder(5), encoder(4).state_dict(), 'here')
    with pytest.raises(CheckpointError, match=r'\(32, 5, 8, 8\) in the checkpoint, \(32, 3, 8, 8\)'):
        load_strictly(encoder(3), encoder(5).state_dict(), 'here')


def test_pretraining_starts_from_three_channels(tmp_path):
    """Encoder, regressor and decoder; the head, which is of other targets, afresh."""
    source = make_cae((24, 24), 8, 3)
    torch.save(dict(state_dict=source.state_dict()), tmp_path / 'rgb.pth')
    model = make_cae((24, 32), 8, 1)
    model.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'rgb.pth'))
    with pytest.raises(CheckpointError, match=r'decoder\.head\.weight \(192, 32\) in the checkpoint, \(64, 32\)'):
        model.init_weights()
    model.init_cfg['allow_missing'] = ['decoder.head']
    model.init_weights()
    torch.testing.assert_close(model.backbone.patch_embed.proj.weight, source.backbone.patch_embed.proj.weight.sum(1, keepdim=True))
    for part in ('regressor', 'decoder.blocks'):
        ours, theirs = (m.get_submodule(part).state_dict() for m in (model, source))
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    report = model.load_pretrained(tmp_path / 'rgb.pth', ['decoder.head'])
    assert '2 not in it in this shape and left as they are (decoder.head)' in report and 'resized (pos_embed, backbone.pos_embed)' in report


# ---------------------------------------------------------------- the preprocessor


def test_preprocessor_is_mmpretrains_for_other_channels():
    data = dict(inputs=[torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8) for _ in range(2)], data_samples=None)
    statistics = dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], second_mean=[7.0], second_std=[8.0])
    ours = ViewPreprocessor(**statistics)(data)['inputs']
    theirs = MODELS.build(dict(type='mmpretrain.TwoNormDataPreprocessor', **statistics))(data)['inputs']
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    five = ViewPreprocessor(mean=range(5), std=[2.0] * 5)(dict(inputs=[torch.ones(1, 5, 2, 2)] * 2, data_samples=None))['inputs']
    torch.testing.assert_close(five[0][0, :, 0, 0], (1 - torch.arange(5.0)) / 2)
    torch.testing.assert_close(five[1], torch.full((1, 5, 2, 2), 1 / 255))


@pytest.mark.parametrize(
    ('statistics', 'message'),
    [
        (dict(mean=[0.0] * 5, std=[1.0] * 4), 'mean has 5 values and std 4'),
        (dict(mean=[0.0], std=[0.0]), r'std=\[0.0\] must be positive'),
        (dict(mean=[0.0], std=[1.0], second_mean=[0.0] * 2, second_std=[1.0] * 3), 'second_mean has 2 values and second_std 3'),
    ],
)
def test_preprocessor_refuses(statistics, message):
    with pytest.raises(ConfigError, match=message):
        ViewPreprocessor(**statistics)
