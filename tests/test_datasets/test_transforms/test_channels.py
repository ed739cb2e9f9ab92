"""Images that are not RGB: grey, and TIFF files with any number of channels, through loading and cropping."""

import sys

import numpy as np
import pytest
import tifffile
from PIL import Image

from mmcae.datasets.transforms import LoadImage, OneViewCrop, TwoViewCrop
from mmcae.utils.errors import ConfigError, DataError, DependencyError


def load(path, channels):
    return LoadImage(channels=channels).transform(dict(img_path=str(path)))


@pytest.fixture
def pixels():
    return np.random.randint(0, 256, (20, 30, 5), dtype=np.uint8)


def test_grey(tmp_path):
    colour = np.random.randint(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(colour).save(tmp_path / 'colour.png')
    Image.fromarray(colour[..., 0]).save(tmp_path / 'grey.png')
    Image.fromarray(colour[..., 0].astype(np.uint16) * 257).save(tmp_path / 'deep.png')
    results = load(tmp_path / 'colour.png', 1)
    assert results['img'].shape == (6, 8, 1) and results['img'].dtype == np.uint8 and results['img_shape'] == (6, 8)
    luma = colour @ [0.299, 0.587, 0.114]
    assert np.abs(results['img'][..., 0] - luma).max() <= 1
    for name in ('grey.png', 'deep.png'):
        assert np.array_equal(load(tmp_path / name, 1)['img'][..., 0], colour[..., 0])


@pytest.mark.parametrize('layout', ['samples', 'planes', 'pages'])
def test_channels_in_every_layout(pixels, layout, tmp_path):
    path = tmp_path / 'image.tif'
    if layout == 'samples':
        tifffile.imwrite(path, pixels, photometric='minisblack', planarconfig='contig')
    elif layout == 'planes':
        tifffile.imwrite(path, pixels.transpose(2, 0, 1), photometric='minisblack', planarconfig='separate')
    else:
        with tifffile.TiffWriter(path) as file:
            for channel in pixels.transpose(2, 0, 1):
                file.write(channel, photometric='minisblack')
    loaded = load(path, 5)['img']
    assert loaded.dtype == np.uint8 and np.array_equal(loaded, pixels)


def test_sixteen_bits_lose_nothing(tmp_path):
    deep = np.random.randint(0, 65536, (9, 7, 2), dtype=np.uint16)
    deep[0, 0], deep[0, 1] = 0, 65535
    tifffile.imwrite(tmp_path / 'deep.tiff', deep, photometric='minisblack', planarconfig='contig')
    loaded = load(tmp_path / 'deep.tiff', 2)['img']
    assert loaded.dtype == np.float32 and loaded.min() == 0 and loaded.max() == 255
    assert np.array_equal((loaded * 257).round(), deep)


def test_what_cannot_be_read_is_named(pixels, tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / 'five.tif', pixels, photometric='minisblack', planarconfig='contig')
    with pytest.raises(DataError, match=r'five.tif has the shape \(20, 30, 5\), .*4 channels'):
        load(tmp_path / 'five.tif', 4)
    tifffile.imwrite(tmp_path / 'float.tif', pixels.astype(np.float32), photometric='minisblack', planarconfig='contig')
    with pytest.raises(DataError, match='float.tif cannot be read as an image: .*32-bit floating point .* unknown range: .*white='):
        load(tmp_path / 'float.tif', 5)
    (tmp_path / 'broken.tif').write_bytes((tmp_path / 'five.tif').read_bytes()[:40])
    with pytest.raises(DataError, match='broken.tif cannot be read as an image'):
        load(tmp_path / 'broken.tif', 5)
    with pytest.raises(DataError, match='none.tif is listed in the data set but does not exist'):
        load(tmp_path / 'none.tif', 5)
    Image.fromarray(pixels[..., :3]).save(tmp_path / 'rgb.png')
    with pytest.raises(DataError, match='read from TIFF files only'):
        load(tmp_path / 'rgb.png', 5)
    with monkeypatch.context() as patched, pytest.raises(DependencyError, match=r'5 channels: tifffile .*mmcae\[slides\]'):
        patched.setitem(sys.modules, 'tifffile', None)
        load(tmp_path / 'five.tif', 5)
    with pytest.raises(ConfigError, match='at least one channel'):
        LoadImage(channels=0)


@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_crops_treat_every_channel_as_one_image(pixels, dtype):
    """Each channel is what PIL makes of it alone; values stay in their range."""
    crop = TwoViewCrop(size=(8, 12), second_size=(4, 6), scale=(1, 1), ratio=(1.5, 1.5))
    image = pixels.astype(dtype)
    views = crop.transform(dict(img=image))['img']
    filters = (Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
    for view, (h, w), resample in zip(views, ((8, 12), (4, 6)), filters, strict=True):
        assert view.shape == (h, w, 5) and view.dtype == dtype
        for channel in range(5):
            expected = np.asarray(Image.fromarray(image[..., channel].copy()).resize((w, h), resample)).clip(0, 255)
            assert np.array_equal(view[..., channel], expected)


def test_one_view_is_the_second_of_two(pixels):
    """Tokenizers are trained on what they see later."""
    import random

    settings = dict(scale=(0.3, 0.8))
    random.seed(3)
    both = TwoViewCrop(size=16, second_size=(8, 12), **settings).transform(dict(img=pixels))
    random.seed(3)
    one = OneViewCrop(size=(8, 12), **settings).transform(dict(img=pixels))
    assert np.array_equal(one['img'], both['img'][1]) and one['img_shape'] == (8, 12)
    shown = "size=(8, 8), scale=(0.08, 1.0), ratio=(0.75, 1.3333333333333333), interpolation='lanczos', backend='pillow'"
    assert repr(OneViewCrop(8)) == f'OneViewCrop({shown})'
