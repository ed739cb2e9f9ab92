"""Reduced decoding: the views of the exact path within a tolerance, the same boxes, and nothing else changed."""

import random
from io import BytesIO

import numpy as np
import pytest
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from PIL import Image

from mmcae.datasets.transforms import LoadImage, TwoViewCrop
from mmcae.datasets.transforms.image_file import ImageFile
from mmcae.utils.configs.loading import load_config
from mmcae.utils.errors import ConfigError, DataError

CROP = dict(type='mmcae.TwoViewCrop', size=32, second_size=16)

TOLERANCE = {1: 0, 2: 2, 4: 3, 8: 5}  # mean difference of a view, in levels of 255, by reduction; docs/loading.md states it


def photo(height, width, seed=0):
    """Texture that falls off with frequency, as in photographs."""
    rng = np.random.default_rng(seed)
    distance = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    fall = 1 / np.maximum(distance, 1 / max(height, width)) ** 1.2
    fields = [np.fft.irfft2(fall * np.fft.rfft2(rng.normal(size=(height, width))), s=(height, width)) for _ in range(3)]
    return np.clip(np.dstack([128 + 45 * field / field.std() for field in fields]), 0, 255).astype(np.uint8)


def jpeg(folder, size, **options):
    path = folder / f'{size[1]}x{size[0]}.jpg'
    Image.fromarray(photo(*size)).save(path, quality=95, **options)
    return str(path)


def run(pipeline, path, seed, **more):
    random.seed(seed)
    np.random.seed(seed)
    return pipeline(dict(img_path=path, **more))


def pipelines(direction='horizontal', **crop):
    init_default_scope('mmpretrain')
    crop = CROP | crop
    after = [dict(type='RandomFlip', prob=0.5, direction=direction), crop]
    return (Compose([dict(type='mmcae.LoadImage', **loading), *after]) for loading in ({}, dict(crop=crop)))


@pytest.mark.parametrize('direction', ['horizontal', 'vertical', 'diagonal'])
@pytest.mark.parametrize('size', [(400, 300), (397, 301), (259, 515)])
def test_views_are_those_of_the_exact_path_within_the_tolerance(tmp_path, size, direction):
    path, seen = jpeg(tmp_path, size), set()
    exact, reduced = pipelines(direction)
    for seed in range(40):
        ours, theirs = run(reduced, path, seed), run(exact, path, seed)
        assert ours.get('flip') == theirs.get('flip') and ours['img_shape'] == theirs['img_shape']
        reader = LoadImage(crop=CROP)
        reduction = run(reader, path, seed)['drawn_box'].reduction
        seen.add(reduction)
        for a, b in zip(ours['img'], theirs['img'], strict=True):
            assert a.shape == b.shape and a.dtype == np.uint8
            assert np.abs(a.astype(int) - b).mean() <= TOLERANCE[reduction], (seed, reduction)
    assert {2, 4} <= seen


@pytest.mark.parametrize('orientation', range(1, 9))
def test_turned_photographs(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = jpeg(tmp_path, (397, 301), exif=exif)
    exact, reduced = pipelines(scale=(0.5, 1))
    for seed in range(12):
        for a, b in zip(run(reduced, path, seed)['img'], run(exact, path, seed)['img'], strict=True):
            assert 0 < np.abs(a.astype(int) - b).mean() <= TOLERANCE[8], seed


def test_opencv_and_pil_reduce_alike(tmp_path, monkeypatch):
    path = jpeg(tmp_path, (397, 301))
    for reduction in (2, 4, 8):
        ours = ImageFile(path).read(reduction)
        assert ImageFile(path).decode_jpeg(reduction) is not None
        with monkeypatch.context() as patch:
            patch.setattr(ImageFile, 'decode_jpeg', lambda self, reduction: None)
            np.testing.assert_array_equal(ours, ImageFile(path).read(reduction))


def test_box_in_whole_pixels_for_torch(tmp_path):
    path = jpeg(tmp_path, (800, 600))
    exact, reduced = pipelines(backend='torch', size=64, second_size=32, scale=(0.5, 1))
    for seed in range(10):
        for a, b in zip(run(reduced, path, seed)['img'], run(exact, path, seed)['img'], strict=True):
            assert a.shape == b.shape and np.abs(a.astype(int) - b).mean() <= 6, seed


def test_decoder_has_less_to_do(tmp_path):
    path = jpeg(tmp_path, (400, 300))
    results = run(LoadImage(crop=CROP | dict(scale=(1, 1))), path, 0)
    assert results['drawn_box'].reduction == 8 and results['img'].shape == (50, 38, 3)


def test_what_cannot_be_reduced_is_exact(tmp_path):
    picture = Image.fromarray(photo(300, 200))
    picture.save(tmp_path / 'a.png')
    picture.convert('CMYK').save(tmp_path / 'cmyk.jpg')
    picture.resize((40, 33)).save(tmp_path / 'small.jpg')
    exact, reduced = pipelines()
    for name in ('a.png', 'cmyk.jpg', 'small.jpg'):
        for seed in range(5):
            for a, b in zip(run(reduced, tmp_path / name, seed)['img'], run(exact, tmp_path / name, seed)['img'], strict=True):
                np.testing.assert_array_equal(a, b)


def test_bytes_of_a_packed_file_and_files_that_cannot_be_read(tmp_path):
    path = jpeg(tmp_path, (400, 300))
    stream = BytesIO()
    Image.open(path).save(stream, 'JPEG', quality=95)
    _, reduced = pipelines()
    results = run(reduced, 'shard.tar/a.jpg', 1, img_bytes=stream.getvalue())
    assert results['img_bytes'] == stream.getvalue() and 'drawn_box' not in results
    for data in (b'', b'no image', stream.getvalue()[:2000]):
        with pytest.raises(DataError, match='shard.tar/a.jpg'):
            run(reduced, 'shard.tar/a.jpg', 1, img_bytes=data)


def test_pipelines_that_do_not_fit_are_refused(tmp_path):
    path = jpeg(tmp_path, (400, 300))
    results = run(LoadImage(crop=CROP | dict(scale=(1, 1))), path, 0)
    with pytest.raises(ConfigError, match='smaller views'):
        TwoViewCrop(64, 16)(dict(results))
    with pytest.raises(ConfigError, match='only mirroring'):
        TwoViewCrop(32, 16)(dict(results, img=results['img'][:, :20]))
    with pytest.raises(ConfigError, match='MicronScale'):
        TwoViewCrop(32, 16)(dict(results, crop_scale=(0.1, 0.2)))
    for wrong in (dict(cache=True), dict(channels=5)):
        with pytest.raises(ConfigError, match='crop'):
            LoadImage(crop=CROP, **wrong)


@pytest.mark.parametrize('config', ['configs/custom/cae_vit-small_folder.py', 'configs/cae/cae_vit-base-p16_32xb64-amp-coslr-800e_in1k.py'])
def test_one_variable_of_the_recipes_turns_it_on(config, repository):
    for value in (False, True):
        pipeline = load_config(repository / config, [f'reduced_decoding={value}']).train_dataloader.dataset.pipeline
        crop = next(step for step in pipeline if step.type == 'mmcae.TwoViewCrop')
        drawn = pipeline[0].get('crop')
        assert bool(drawn) == value
        if value:
            assert drawn.size >= crop.second_size and (drawn.size, drawn.scale) == (crop.size, crop.scale)
