"""Pixel targets are MAE's."""

import pytest
import torch

from mmcae.models import PixelTargets
from mmcae.models.targets.pixels import patchify, unpatchify
from mmcae.utils.errors import ConfigError


def test_same_as_mmpretrain(images):
    """MAE's own head, where it can express it: square images, square patches."""
    from mmpretrain.models.heads import MAEPretrainHead

    square = images[..., :32]
    for normalize in (True, False):
        head = MAEPretrainHead(loss=dict(type='PixelReconstructionLoss', criterion='L2'), norm_pix=normalize, patch_size=8)
        torch.testing.assert_close(PixelTargets(8, normalize).tokenize(square), head.construct_target(square))


def test_patches_one_by_one(images):
    patches = patchify(images, (16, 8))
    assert patches.shape == (4, 2 * 6, 16 * 8 * 3)
    for row in range(2):
        for column in range(6):
            tile = images[:, :, 16 * row : 16 * row + 16, 8 * column : 8 * column + 8]
            assert torch.equal(patches[:, 6 * row + column], tile.permute(0, 2, 3, 1).flatten(1))
    assert torch.equal(unpatchify(patches, (16, 8), (2, 6)), images)


def test_normalised(images):
    images[:, :, :8, :8] = 0.3
    targets = PixelTargets(8).tokenize(images)
    torch.testing.assert_close(targets.mean(-1), torch.zeros(4, 24), atol=1e-5, rtol=0)
    torch.testing.assert_close(targets[:, 1:].std(-1), torch.ones(4, 23), atol=1e-3, rtol=0)
    assert targets[:, 0].abs().max() < 1e-3  # flat: nothing to blow up


@pytest.mark.parametrize('normalize', [True, False])
def test_decode_is_the_inverse(images, normalize):
    tokenizer = PixelTargets((16, 8), normalize)
    targets = tokenizer.tokenize(images)
    assert tokenizer.num_outputs == targets.shape[-1] == 16 * 8 * 3
    torch.testing.assert_close(tokenizer.decode(targets, reference=images), images)
    with pytest.raises(ConfigError, match='reference='):
        tokenizer.decode(targets)


def test_other_channels():
    grey = torch.rand(2, 1, 16, 16)
    tokenizer = PixelTargets(8, in_channels=1)
    assert tokenizer.tokenize(grey).shape == (2, 4, tokenizer.num_outputs) == (2, 4, 64)
