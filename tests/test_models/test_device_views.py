"""Views that the device makes of crops are those that a loader worker makes of the same boxes, flips and factors."""

import random

import numpy as np
import pytest
import torch
from mmengine.dataset import Compose
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional

from mmcae.datasets.crops import collate_views
from mmcae.datasets.transforms import ColorJitter, TwoViewCrop
from mmcae.models import ViewPreprocessor
from mmcae.models.device_views import make_views
from mmcae.registry import FUNCTIONS
from mmcae.utils.errors import ConfigError


def photo(seed, height=90, width=120):
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.integers(30, 226, (3, 9, 13), dtype=np.uint8))
    image = functional.resize(coarse, [height, width], antialias=True).permute(1, 2, 0).numpy()
    return (image + rng.normal(0, 8, image.shape)).clip(0, 255).astype(np.uint8)


class Photos(torch.utils.data.Dataset):
    """Photos of several sizes, cut by a pipeline with random numbers of their own."""

    def __init__(self, backend, *before, count=5, dtype=np.uint8, flip=0.5, **crop):
        crop = dict(dict(size=(32, 48), second_size=24), **crop)
        self.steps = Compose([*before, dict(type='RandomFlip', prob=flip), TwoViewCrop(**crop, backend=backend)])
        self.count, self.dtype = count, dtype

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        random.seed(number)
        np.random.seed(number)
        torch.manual_seed(number)
        results = self.steps(dict(img=photo(number, 60 + 20 * (number % 7), 100).astype(self.dtype), img_path=str(number)))
        views = [
            torch.from_numpy(view).permute(2, 0, 1) if getattr(view, 'ndim', 1) == 3 else torch.as_tensor(view) for view in results['img']
        ]
        return dict(inputs=views, data_samples=results.get('flip', False))


@pytest.fixture(autouse=True)
def scope():
    from mmengine.registry import init_default_scope

    init_default_scope('mmpretrain')


def views_of(data, workers=0):
    """All images of a data set as one batch of views, and which are mirrored."""
    collate = FUNCTIONS.get('mmcae.collate_views')
    (batch,) = DataLoader(data, len(data), collate_fn=collate, num_workers=workers)
    plain = ViewPreprocessor(mean=[0.0], std=[1.0], second_std=[1.0])
    return plain(batch)['inputs'], list(map(bool, batch['data_samples']))


@pytest.mark.parametrize('second', [dict(second_size=24), dict(second_size=None), dict(second_size=(90, 60), interpolation='bilinear')])
@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_views_are_those_of_a_worker(second, dtype):
    """Reduced and enlarged, mirrored or not; several sizes in a batch, more images than are computed at once."""
    (ours, flips), (torchs, same) = (views_of(Photos(backend, count=40, dtype=dtype, **second)) for backend in ('device', 'torch'))
    assert flips == same and len(set(flips)) == 2 and len(ours) == len(torchs)
    for mine, theirs in zip(ours, torchs, strict=True):
        difference = (mine - theirs).abs()
        assert mine.shape == theirs.shape and mine.dtype == torch.float32
        if dtype == np.float32:
            torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-2)
        else:  # the worker rounds between the two directions
            assert difference.max() <= 3 and (difference > 1).float().mean() < 1e-3
            assert torch.equal(mine, mine.round())


def test_the_cast_of_a_training_does_not_reach_them():
    with torch.autocast('cpu', torch.bfloat16):
        inside = views_of(Photos('device'))[0]
    assert all(map(torch.equal, inside, views_of(Photos('device'))[0]))


def test_workers_hand_over_one_tensor():
    alone, beside = views_of(Photos('device'))[0], views_of(Photos('device'), workers=1)[0]
    assert all(map(torch.equal, alone, beside))
    data = Photos('device')
    batch = collate_views([data[number] for number in range(2)])
    assert batch['inputs'][0].ndim == 1 and batch['inputs'][0].dtype == torch.uint8 and len(batch['inputs'][1]) == 2


@pytest.mark.parametrize(
    'factors', [dict(brightness=0.4), dict(contrast=0.4), dict(saturation=0.4), dict(brightness=0.4, contrast=0.4, saturation=0.4)]
)
def test_colours_are_those_of_a_worker(factors):
    """The same draws; rounded later, and clipped after resizing in place of before."""
    ours, theirs = (
        views_of(Photos(kind, ColorJitter(**factors, backend=jitter), second_size=None))[0][0]
        for kind, jitter in (('device', 'device'), ('torch', 'pillow'))
    )
    plain = views_of(Photos('torch', second_size=None))[0][0]
    assert (ours - theirs).abs().mean() < 1.5 < 5 < (plain - theirs).abs().mean()


def test_errors():
    with pytest.raises(ConfigError, match='choose from bilinear, bicubic, lanczos'):
        TwoViewCrop(8, interpolation='hamming', backend='device')
    with pytest.raises(ConfigError, match='does not change the hue'):
        ColorJitter(hue=0.1, backend='device')
    with pytest.raises(ConfigError, match="ColorJitter\\(backend='device'\\) needs TwoViewCrop\\(backend='device'\\)"):
        Photos('torch', ColorJitter(brightness=0.1, backend='device'))[0]


def test_only_its_view_decides():
    """An image's views do not depend on the batch that it is in."""
    data = Photos('device')
    whole = views_of(data)[0]
    for number in range(len(data)):
        alone = make_views(*collate_views([data[number]])['inputs'], 'cpu')
        assert all((view[0] - rows[number]).abs().max() <= 1 for view, rows in zip(alone, whole, strict=True))
