"""Channels, views and masks that do not fit the model are refused before the first step."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmpretrain.structures import DataSample

from mmcae.engine import Checks
from mmcae.models import DiscreteVAE, PatchCodebook
from mmcae.utils.errors import ConfigError


class Samples(torch.utils.data.Dataset):
    """Two views and a mask, drawing random numbers as a pipeline does."""

    def __init__(self, view=(3, 64, 64), second=(3, 32, 32), mask=(4, 4)):
        self.shapes = view, second, mask

    def __len__(self):
        return 1

    def __getitem__(self, index):
        random.random(), np.random.rand(), torch.rand(1)
        view, second, mask = self.shapes
        inputs = [torch.zeros(view, dtype=torch.uint8), torch.zeros(second, dtype=torch.uint8)]
        return dict(inputs=inputs, data_samples=DataSample().set_mask(torch.zeros(mask, dtype=torch.bool)))


def check(model, dataset):
    Checks(bad_files=False).before_train(SimpleNamespace(model=model, train_dataloader=SimpleNamespace(dataset=dataset), val_loop=None))


@pytest.fixture
def model(tiny_cae):
    """64 pixels in patches of 16; targets of 8x8 pixels of the second view."""
    means = dict(mean=[0.0] * 3, std=[255.0] * 3)
    return tiny_cae(
        target_generator=dict(type='mmcae.PixelTargets', patch_size=8),
        decoder=dict(num_outputs=None),
        data_preprocessor=dict(type='mmcae.ViewPreprocessor', **means),
    )


def test_random_states_are_restored(model):
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    check(model, Samples())
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states
    check(torch.nn.Linear(2, 2), Samples())  # a model without check_sample


@pytest.mark.parametrize(
    ('shapes', 'message'),
    [
        (dict(view=(1, 64, 64)), r'images have 1 channels, but the encoder was made for 3: set model.backbone.in_channels=1'),
        (dict(second=(1, 32, 32)), 'PixelTargets reads 3 channels, but its view has 1'),
        (dict(view=(3, 64, 72)), '64x72 pixels .* are not tiled by patches of 16x16'),
        (dict(view=(3, 64, 80)), r'masks are \(4, 4\), but the encoder has \(4, 5\) patches: set grid=\(4, 5\)'),
        (dict(mask=(2, 8)), r'masks are \(2, 8\), but the encoder has \(4, 4\) patches'),
        (dict(second=(3, 64, 64)), r'set the size of the second view to \(32, 32\)'),
    ],
)
def test_message_names_the_setting(model, shapes, message):
    with pytest.raises(ConfigError, match=message):
        check(model, Samples(**shapes))


def test_mean_of_another_length(tiny_cae):
    model = tiny_cae(
        backbone=dict(in_channels=5),
        target_generator=dict(type='mmcae.PixelTargets', patch_size=8, in_channels=5),
        decoder=dict(num_outputs=None),
        data_preprocessor=dict(type='mmcae.ViewPreprocessor', mean=[0.0] * 4, std=[1.0] * 4),
    )
    with pytest.raises(ConfigError, match='data_preprocessor.mean has 4 values, but the images have 5 channels'):
        check(model, Samples(view=(5, 64, 64), second=(5, 32, 32)))


def test_mask_grid_is_checked_in_each_step(model):
    """For streams, which have no first sample: a mask of another grid would pick the wrong patches silently."""
    images = torch.rand(2, 3, 64, 64)
    samples = [DataSample().set_mask(torch.eye(3, dtype=torch.bool)) for _ in range(2)]
    with pytest.raises(ConfigError, match=r'set grid=\(4, 4\) of the mask generator'):
        model.loss([images, images[..., :32, :32]], samples)


def test_pipeline_without_second_view_and_mask(model):
    class OneView(Samples):
        def __getitem__(self, index):
            return dict(inputs=torch.zeros(3, 64, 64), data_samples=DataSample())

    with pytest.raises(ConfigError, match='lacks mmcae.TwoViewCrop or a mask generator'):
        check(model, OneView())


def test_tokenizers():
    class OneView(Samples):
        def __getitem__(self, index):
            return dict(inputs=torch.zeros(self.shapes[0]), data_samples=DataSample())

    vae = DiscreteVAE(vocab_size=8, channels=(4, 4, 4), in_channels=1)
    check(vae, OneView(view=(1, 24, 32)))
    with pytest.raises(ConfigError, match='DiscreteVAE reads 1 channels, but its view has 3'):
        check(vae, OneView())
    with pytest.raises(ConfigError, match='multiples of 8x8 pixels, got 24x36'):
        check(vae, OneView(view=(1, 24, 36)))
    check(PatchCodebook(), OneView(view=(5, 24, 32)))
