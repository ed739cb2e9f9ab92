"""Two views of one box: the box is drawn as the authors draw it, the pixels are PIL's."""

import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional
from torchvision.transforms.functional import InterpolationMode

from mmcae.datasets.transforms import TwoViewCrop
from mmcae.datasets.transforms.two_view_crop import contiguous
from mmcae.utils.errors import ConfigError


@pytest.fixture
def photo():
    """Smooth structure and noise: interpolation filters differ on both."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 13, 3), dtype=np.uint8)).resize((320, 240), Image.Resampling.BICUBIC)
    return (np.asarray(coarse, float) + rng.normal(0, 12, (240, 320, 3))).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize('size, second_size', [(224, 112), ((96, 160), (48, 80)), (32, 32)])
@pytest.mark.parametrize('box', [(0, 0, 240, 320), (17, 40, 150, 131), (200, 280, 40, 40)])
def test_both_views_are_pils_and_torchvisions(photo, size, second_size, box, monkeypatch):
    crop = TwoViewCrop(size, second_size)
    monkeypatch.setattr(crop, 'sample_box', lambda height, width: box)
    first, second = crop({'img': photo})['img']
    picture = Image.fromarray(photo)
    for view, shape, filter_ in ((first, size, 'bicubic'), (second, second_size, 'lanczos')):
        height, width = (shape, shape) if isinstance(shape, int) else shape
        top, left, h, w = box
        by_pil = picture.crop((left, top, left + w, top + h)).resize((width, height), Image.Resampling[filter_.upper()])
        by_torchvision = functional.resized_crop(picture, *box, (height, width), InterpolationMode(filter_))
        assert view.dtype == np.uint8 and view.shape == (height, width, 3)
        np.testing.assert_array_equal(view, np.asarray(by_pil))
        np.testing.assert_allclose(view, np.asarray(by_torchvision), atol=1)


@pytest.mark.parametrize('filters', [('bicubic', 'lanczos'), ('bilinear', 'bicubic'), ('hamming', 'box')])
@pytest.mark.parametrize('size, second_size', [(224, 112), ((96, 160), (48, 80))])
def test_torch_resizes_as_pil(photo, size, second_size, filters):
    """The tolerance that the docs state. The two do not always resize the same side first: another rounding, another clipping at white."""
    differences = []
    for seed in range(10):
        views = []
        for backend in ('pillow', 'torch'):
            random.seed(seed)
            crop = TwoViewCrop(size, second_size, interpolation=filters[0], second_interpolation=filters[1], backend=backend)
            views.append(crop({'img': photo[:, :: -1 if seed % 2 else 1]})['img'])
        for ours, pils in zip(views[1], views[0], strict=True):
            assert ours.dtype == pils.dtype == np.uint8 and ours.shape == pils.shape
            differences.append(np.abs(ours.astype(int) - pils).ravel())
    differences = np.concatenate(differences)
    assert (differences > 0).mean() < 0.15 and (differences > 1).mean() < 1e-3 and differences.max() <= 25


def test_torch_resizes_other_channels_and_cached_images():
    rng = np.random.default_rng(0)
    for image in (rng.integers(0, 256, (80, 90, 1), np.uint8), rng.random((80, 90, 5), np.float32) * 255):
        image.setflags(write=False)  # as LoadImage(cache=True) leaves it
        crops = [TwoViewCrop(32, 16, scale=(1, 1), ratio=(1, 1), backend=backend) for backend in ('pillow', 'torch')]
        random.seed(0)
        pils = crops[0]({'img': image})['img']
        random.seed(0)
        for ours, theirs in zip(crops[1]({'img': image})['img'], pils, strict=True):
            assert ours.dtype == theirs.dtype and ours.min() >= 0 and ours.max() <= 255
            np.testing.assert_allclose(ours, theirs, atol=2)


def test_first_view_agrees_with_torchs_antialiased_tensor_resize(photo, monkeypatch):
    """An implementation of its own, in float: PIL rounds twice, hence a tolerance of two levels."""
    crop = TwoViewCrop(112, 56)
    monkeypatch.setattr(crop, 'sample_box', lambda height, width: (0, 0, 240, 320))
    tensor = torch.from_numpy(photo).permute(2, 0, 1)[None].float()
    resized = torch.nn.functional.interpolate(tensor, (112, 112), mode='bicubic', antialias=True, align_corners=False)[0].permute(1, 2, 0)
    np.testing.assert_allclose(crop({'img': photo})['img'][0], resized.clamp(0, 255).numpy(), atol=2)


def test_views_show_the_same_box(photo):
    """Both views of a picture that encodes positions in its colours average to the same position."""
    y, x = np.mgrid[:200, :250].astype(np.uint8)
    position = np.dstack([x, y, np.zeros_like(x)])
    for seed in range(20):
        random.seed(seed)
        first, second = TwoViewCrop(64, 32)({'img': position})['img']
        np.testing.assert_allclose(first.mean((0, 1)), second.mean((0, 1)), atol=0.7)


def test_box_is_the_authors():
    """Against their sampling written out step by step, from the same random numbers."""
    crop = TwoViewCrop(224, 112)

    def authors(height, width):
        for _ in range(10):
            area = random.uniform(0.08, 1.0) * (height * width)
            ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = int(round(math.sqrt(area * ratio))), int(round(math.sqrt(area / ratio)))
            if w <= width and h <= height:
                return random.randint(0, height - h), random.randint(0, width - w), h, w
        if width / height < 3 / 4:
            w, h = width, int(round(width / (3 / 4)))
        elif width / height > 4 / 3:
            w, h = int(round(height * (4 / 3))), height
        else:
            w, h = width, height
        return (height - h) // 2, (width - w) // 2, h, w

    for size in ((240, 320), (333, 500), (50, 400), (400, 50), (32, 32)):
        random.seed(1)
        ours = [crop.sample_box(*size) for _ in range(200)]
        random.seed(1)
        assert ours == [authors(*size) for _ in range(200)]


def test_boxes_reach_every_edge_and_the_whole_image():
    random.seed(0)
    crop = TwoViewCrop(8, 8, scale=(0.3, 1.0))
    height, width = 12, 10
    boxes = [crop.sample_box(height, width) for _ in range(20000)]
    assert all(0 <= y and 0 <= x and y + h <= height and x + w <= width and h > 0 and w > 0 for y, x, h, w in boxes)
    tops, lefts = Counter(), Counter()
    for y, x, h, w in boxes:
        if h == 8:
            tops[y] += 1
        if w == 8:
            lefts[x] += 1
    for counts, places in ((tops, range(5)), (lefts, range(3))):
        expected = sum(counts.values()) / len(places)
        assert sorted(counts) == list(places)
        assert all(abs(n - expected) < 5 * math.sqrt(expected) for n in counts.values())  # uniform, both ends included
    assert any((h, w) == (12, 10) for _, _, h, w in boxes)


def test_box_that_never_fits_falls_back_to_the_centre():
    random.seed(0)
    assert TwoViewCrop(8, 8, scale=(1.0, 1.0)).sample_box(10, 100) == (0, 43, 10, 13)
    assert TwoViewCrop(8, 8, scale=(1.0, 1.0)).sample_box(100, 10) == (43, 0, 13, 10)
    assert TwoViewCrop(8, 8).sample_box(1, 1) == (0, 0, 1, 1)


def test_image_of_one_pixel():
    first, second = TwoViewCrop(32, 16)({'img': np.full((1, 1, 3), 77, np.uint8)})['img']
    assert (first == 77).all() and (second == 77).all()


def test_mirrored_views_and_other_strided_input(photo):
    random.seed(3)
    expected = TwoViewCrop(64, 32)({'img': np.ascontiguousarray(photo[:, ::-1])})['img']
    random.seed(3)
    for view, other in zip(TwoViewCrop(64, 32)({'img': photo[:, ::-1]})['img'], expected, strict=True):
        np.testing.assert_array_equal(view, other)


@pytest.mark.parametrize(
    'wrong, message',
    [
        ({'size': 0}, 'size must be positive'),
        ({'second_size': (12, -1)}, 'second_size must be positive'),
        ({'scale': (0.5, 1.5)}, 'scale'),
        ({'scale': (0.9, 0.2)}, 'scale'),
        ({'ratio': (0, 1)}, 'ratio'),
        ({'interpolation': 'bicubik'}, 'bicubik'),
        ({'interpolation': 'bicubik', 'backend': 'torch'}, 'bicubik'),
        ({'backend': 'cv2'}, "'cv2' is neither 'pillow' nor 'torch'"),
    ],
)
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        TwoViewCrop(**{'size': 32, 'second_size': 16, **wrong})


@pytest.mark.parametrize('channels', [1, 3, 5])
@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_contiguous_arrays_hold_what_their_parts_and_mirror_images_do(channels, dtype):
    image = np.arange(20 * 30 * channels).reshape(20, 30, channels).astype(dtype)
    for rows in (slice(None), slice(None, None, -1), slice(3, 9)):
        for columns in (slice(None), slice(None, None, -1), slice(5, 17), slice(17, 5, -1)):
            part = image[rows, columns]
            copied = contiguous(part)
            assert copied.flags.c_contiguous and copied.dtype == dtype
            np.testing.assert_array_equal(copied, part)
