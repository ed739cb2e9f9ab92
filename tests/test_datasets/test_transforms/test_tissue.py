"""Stains against scikit-image's numbers and a slow implementation; turns; physical scales; the generated tiles."""

import math
import random
import re
from collections import Counter

import numpy as np
import pytest

from mmcae.datasets.transforms import HEDJitter, MicronScale, RandomRotate90, TwoViewCrop
from mmcae.datasets.transforms.tissue import ABSORPTION, change_stains, rgb_to_stains, stains_to_rgb
from mmcae.utils.errors import ConfigError, DataError

PIXELS = np.array([[255, 255, 255], [120, 60, 150], [230, 150, 190], [90, 70, 40], [200, 180, 220]], np.uint8)
# skimage.color.rgb2hed(PIXELS) of scikit-image 0.26, which cuts off what is below 0
SCIKIT_IMAGE = [
    [0.0, 0.0, 0.0],
    [0.07244160469254338, 0.04541140869507149, 0.01590363236634643],
    [0.0, 0.025825076694102993, 0.02415528855515066],
    [0.054696850826116965, 0.0, 0.15638381527304743],
    [0.0249306251767261, 0.0057541174419853645, 0.003619763737721188],
]


@pytest.fixture
def tissue():
    """A tile with nuclei, fibres and glass, mixed by Beer and Lambert's law here."""
    rng = np.random.default_rng(0)
    amounts = np.stack([rng.uniform(0, 1.5, (24, 32)), rng.uniform(0, 1, (24, 32)), np.zeros((24, 32))], axis=-1)
    amounts[:4] = 0
    return amounts, np.rint(255 * np.exp(-amounts @ ABSORPTION)).astype(np.uint8)


def test_stains_are_scikit_images():
    stains = rgb_to_stains(PIXELS) / math.log(1e6)
    np.testing.assert_allclose(np.maximum(stains, 0), SCIKIT_IMAGE, atol=1e-7)


def test_unmixing_finds_what_was_mixed(tissue):
    amounts, image = tissue
    error = np.abs(rgb_to_stains(image) - amounts)
    assert error.max() < 0.12 and error.mean() < 0.01  # 8 bits of a dark pixel are coarse
    np.testing.assert_array_equal(stains_to_rgb(amounts), image)


def test_nothing_is_lost_without_a_change():
    every_level = np.stack(np.meshgrid(*[np.arange(0, 256, 15)] * 3), axis=-1).reshape(18, -1, 3).astype(np.uint8)
    for image in (every_level, np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)):
        np.testing.assert_array_equal(stains_to_rgb(rgb_to_stains(image)), image)
        np.testing.assert_array_equal(change_stains(image, (1, 1, 1), (0, 0, 0)), image)


def test_jitter_is_the_slow_way(tissue):
    """Pixel by pixel: unmix, change each stain, mix."""
    _, image = tissue
    random.seed(5)
    jittered = HEDJitter(scale=0.3, shift=0.1)({'img': image})['img']
    random.seed(5)
    factors, shifts = [1 + random.uniform(-0.3, 0.3) for _ in range(3)], [random.uniform(-0.1, 0.1) for _ in range(3)]
    inverse = np.linalg.inv(ABSORPTION)
    for row in range(0, 24, 3):
        for column in range(0, 32, 5):
            density = [-math.log(max(value, 0.5) / 255) for value in image[row, column].tolist()]
            amounts = [sum(density[i] * inverse[i, stain] for i in range(3)) * factors[stain] + shifts[stain] for stain in range(3)]
            mixed = [255 * math.exp(-max(0, sum(amounts[stain] * ABSORPTION[stain, i] for stain in range(3)))) for i in range(3)]
            np.testing.assert_allclose(jittered[row, column], mixed, atol=0.51)
    assert jittered.dtype == np.uint8 and not np.array_equal(jittered, image)


def test_stain_factors_change_the_stains_and_leave_glass(tissue):
    amounts, image = tissue
    changed = rgb_to_stains(change_stains(image, (0.5, 1, 1), (0, 0, 0)))
    np.testing.assert_allclose(changed[..., 0], 0.5 * amounts[..., 0], atol=0.1)
    np.testing.assert_allclose(changed[..., 1], amounts[..., 1], atol=0.1)
    assert (change_stains(image, (0.7, 1.3, 0.8), (0, 0, 0))[:4] == 255).all()


def test_jitter_varies_and_keeps_to_its_range(tissue):
    _, image = tissue
    random.seed(0)
    means = [rgb_to_stains(HEDJitter(0.2, 0)({'img': image})['img'])[4:, :, 0].mean() for _ in range(200)]
    ratio = np.array(means) / rgb_to_stains(image)[4:, :, 0].mean()
    assert 0.78 < ratio.min() < 0.83 and 1.17 < ratio.max() < 1.22


@pytest.mark.parametrize('settings', [dict(scale=-0.1), dict(scale=1), dict(shift=-1)])
def test_impossible_jitter(settings):
    with pytest.raises(ConfigError):
        HEDJitter(**settings)


def test_quarter_turns_are_equally_likely_and_exact():
    random.seed(0)
    image = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    turns, counts = [np.rot90(image, k) for k in range(4)], Counter()
    for _ in range(400):
        results = RandomRotate90()({'img': image, 'img_shape': (6, 9)})
        (turn,) = [k for k in range(4) if results['img'].shape == turns[k].shape and np.array_equal(results['img'], turns[k])]
        assert results['img_shape'] == turns[turn].shape[:2] and results['img'].flags.c_contiguous
        counts[turn] += 1
    assert sorted(counts) == [0, 1, 2, 3] and all(70 < n < 130 for n in counts.values())


def micron_crop(path, side=512, **settings):
    scale = MicronScale(view_size=224, **settings)
    return scale({'img': np.zeros((side, side, 3), np.uint8), 'img_path': str(path)})


def test_views_have_the_resolution_that_was_asked_for():
    """The side of the box in microns, divided by the pixels of the view, lies in the range; the same for all magnifications."""
    random.seed(0)
    for tile_mpp, side in ((0.25, 1024), (0.5, 512), (1.0, 300)):
        results = micron_crop('a.png', side, mpp=(0.5, 1.0), tile_mpp=tile_mpp)
        crop, seen = TwoViewCrop(224, 112, ratio=(1, 1)), []
        for _ in range(300):
            _, _, height, width = crop.sample_box(side, side, results['crop_scale'])
            assert height == width
            seen.append(height * tile_mpp / 224)
        assert results['mpp'] == tile_mpp and 0.495 < min(seen) < 0.56 and 0.95 < max(seen) < 1.005, (tile_mpp, min(seen), max(seen))


def test_the_crop_takes_the_scale_of_its_image():
    image = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    whole = TwoViewCrop(100, 50, scale=(0.01, 0.01), interpolation='nearest')({'img': image, 'crop_scale': (1.0, 1.0), 'img_path': ''})
    assert np.array_equal(whole['img'][0], image) or whole['img'][0].shape == (100, 100, 3)
    random.seed(1)
    box = TwoViewCrop(8, 8, ratio=(1, 1)).sample_box(100, 100, (0.25, 0.25))
    assert box[2:] == (50, 50)


def test_a_coarse_end_beyond_the_tile_takes_the_whole_tile():
    assert micron_crop('a.png', 256, mpp=(0.25, 2.0), tile_mpp=0.5)['crop_scale'] == (pytest.approx((112 / 256) ** 2), 1.0)


def test_a_tile_that_is_too_small_is_named():
    with pytest.raises(DataError, match=r'a.png: 256x256 pixels at 0.25 microns per pixel are 64x64 microns, too small .* 112 microns'):
        micron_crop('a.png', 256, mpp=(0.5, 1.0), tile_mpp=0.25)


def test_resolutions_from_a_table(tmp_path):
    (tmp_path / 'slides.csv').write_text(f'path,patient,mpp\nslide1,p,0.25\nslide2/odd.png,p,0.4\nslide2,p,0.5\n{tmp_path}/far/away,q,1\n')
    known = {'slide1/a.png': 0.25, 'slide2/a.png': 0.5, 'slide2/odd.png': 0.4, 'slide1/deep/a.png': 0.25, 'far/away/a.png': 1.0}
    for path, mpp in known.items():
        assert micron_crop(tmp_path / path, 2048, mpp=(0.5, 1), table=str(tmp_path / 'slides.csv'))['mpp'] == mpp
    with pytest.raises(DataError, match='slide3/a.png: neither the tile nor a folder it is in stands in .*slides.csv'):
        micron_crop(tmp_path / 'slide3/a.png', mpp=(0.5, 1), table=str(tmp_path / 'slides.csv'))


def test_resolutions_from_names():
    pattern = r'_mpp(?P<mpp>\d+\.\d+)'
    assert micron_crop('s/tile_x1_mpp0.5.png', 512, mpp=(0.5, 1), pattern=pattern)['mpp'] == 0.5
    with pytest.raises(DataError, match="s/tile.png: the pattern '_mpp.* does not find"):
        micron_crop('s/tile.png', mpp=(0.5, 1), pattern=pattern)
    with pytest.raises(DataError, match="'0.0' is no number of microns"):
        micron_crop('s/a_mpp0.0.png', mpp=(0.5, 1), pattern=pattern)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(mpp=(1, 0.5), tile_mpp=1), 'finest, coarsest'),
        (dict(mpp=(0.5, 1)), 'needs one of tile_mpp'),
        (dict(mpp=(0.5, 1), tile_mpp=1, pattern='(?P<mpp>.)'), 'needs one of tile_mpp'),
        (dict(mpp=(0.5, 1), tile_mpp=0), 'must be above 0'),
        (dict(mpp=(0.5, 1), pattern='mpp(.*)'), 'has no group mpp'),
        (dict(mpp=(0.5, 1), pattern='(?P<mpp>'), 'is no regular expression'),
        (dict(mpp=(0.5, 1), table='{folder}/absent.csv'), 'absent.csv cannot be read .*columns path and mpp'),
        (dict(mpp=(0.5, 1), table='{folder}/other.csv'), 'other.csv has no column mpp'),
        (dict(mpp=(0.5, 1), table='{folder}/empty.csv'), 'empty.csv has no rows'),
    ],
)
def test_impossible_scales(tmp_path, settings, message):
    (tmp_path / 'other.csv').write_text('path,resolution\na,1\n')
    (tmp_path / 'empty.csv').write_text('path,mpp\n')
    settings = {key: value.format(folder=tmp_path) if key == 'table' else value for key, value in settings.items()}
    with pytest.raises(ConfigError, match=message):
        MicronScale(**settings)


def test_a_table_with_a_wrong_number(tmp_path):
    (tmp_path / 'slides.csv').write_text('path,mpp\nslide1,20x\n')
    with pytest.raises(DataError, match="slides.csv, slide1: '20x' is no number of microns per pixel"):
        MicronScale(mpp=(0.5, 1), table=str(tmp_path / 'slides.csv'))


def test_settings_are_shown():
    assert repr(HEDJitter(0.1, 0.2)) == 'HEDJitter(scale=0.1, shift=0.2)' and repr(RandomRotate90()) == 'RandomRotate90()'
    assert re.fullmatch(r'MicronScale\(mpp=\(0.5, 1\), view_size=96, tile_mpp=0.25\)', repr(MicronScale((0.5, 1), 96, tile_mpp=0.25)))
