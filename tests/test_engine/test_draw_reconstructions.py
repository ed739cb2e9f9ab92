"""Sheets of originals and reconstructions during the training of a tokenizer."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mmcae.engine import DrawReconstructions
from mmcae.engine.hooks.draw_reconstructions import reconstruct_views
from mmcae.models import DiscreteVAE, PatchCodebook
from mmcae.utils.errors import ConfigError


def trained(kind=DiscreteVAE, channels=3):
    settings = dict(vocab_size=16, channels=(8, 8, 8), num_blocks=1, code_dim=4, in_channels=channels) if kind is DiscreteVAE else {}
    model = kind(**settings)
    model.training_loss(torch.rand(4, channels, 32, 48))
    return model.train()


@pytest.mark.parametrize(('kind', 'channels'), [(DiscreteVAE, 3), (DiscreteVAE, 1), (DiscreteVAE, 5), (DiscreteVAE, 2), (PatchCodebook, 3)])
def test_originals_are_the_images_and_reconstructions_the_tokens(kind, channels):
    model = trained(kind, channels)
    views = torch.randint(0, 256, (3, channels, 32, 48), dtype=torch.uint8)
    originals, drawn = reconstruct_views(model, views)
    assert model.training
    shown = views[:, :3] if channels >= 3 else views[:, :1].expand(-1, 3, -1, -1)
    assert all(np.array_equal(one, view.permute(1, 2, 0)) for one, view in zip(originals, shown, strict=True))
    images = views.float() / 255
    expected = model.eval().decode(model.tokenize(images), reference=images)
    expected = expected[:, :3] if expected.shape[1] >= 3 else expected[:, :1].expand(-1, 3, -1, -1)
    assert all(np.array_equal(one, (e * 255).round().byte().permute(1, 2, 0)) for one, e in zip(drawn, expected, strict=True))


def test_sheets_of_the_same_images(tmp_path):
    hook = DrawReconstructions(interval=2, by_epoch=False, images=5, pairs=2)
    runner = SimpleNamespace(model=trained(), work_dir=str(tmp_path), iter=0)
    for step in range(4):
        views = torch.full((8, 3, 32, 48), 40 * step, dtype=torch.uint8)
        hook.before_train_iter(runner, step, dict(inputs=views))
        runner.iter = step
        hook.after_train_iter(runner, step)
    files = sorted(path.name for path in (tmp_path / 'reconstructions').iterdir())
    assert files == ['iter_2.png', 'iter_4.png']
    first, second = (np.asarray(Image.open(tmp_path / 'reconstructions' / name)) for name in files)
    assert np.array_equal(first, second)  # nothing was learned in between
    assert first.shape[1] == 6 + 4 * 118  # two pairs beside each other


@pytest.mark.parametrize('setting', [dict(interval=0), dict(images=0), dict(pairs=0)])
def test_numbers_are_positive(setting):
    with pytest.raises(ConfigError, match='positive numbers'):
        DrawReconstructions(**setting)
