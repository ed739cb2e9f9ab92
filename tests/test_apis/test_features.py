"""extract_features: the features a person would get by hand, for files and arrays, whatever the batches."""

import numpy as np
import pytest
import torch
from PIL import Image

from mmcae.apis import extract_features
from mmcae.apis.features import IMAGENET_MEAN, IMAGENET_STD, normalization_of
from mmcae.utils.errors import ConfigError, DataError


@pytest.fixture
def images():
    random = np.random.default_rng(0)
    return [random.integers(0, 256, size, np.uint8) for size in ((64, 64, 3), (80, 100, 3), (40, 30, 3))]


def by_hand(encoder, image, size=64, mean=IMAGENET_MEAN, std=IMAGENET_STD):
    """Crop, resize and normalise step by step."""
    height, width = image.shape[:2]
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    picture = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    pixels = (np.asarray(picture, np.float32) - np.float32(mean)) / np.float32(std)
    with torch.no_grad():
        return encoder(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0][0].numpy()


@pytest.mark.parametrize('out_type, shape', [('cls_token', (48,)), ('avg_featmap', (48,)), ('featmap', (48, 4, 4)), ('raw', (17, 48))])
def test_features_are_those_of_the_encoder(tiny_cae, images, out_type, shape):
    encoder = tiny_cae(backbone=dict(out_type=out_type)).backbone
    features = extract_features(encoder, images, device='cpu')
    assert features.shape == (3, *shape) and features.dtype == np.float32
    for feature, image in zip(features, images, strict=True):
        np.testing.assert_allclose(feature, by_hand(encoder, image), rtol=1e-4, atol=1e-4)


def test_files_arrays_generators_and_batches_agree(tiny_cae, images, tmp_path):
    encoder = tiny_cae().backbone
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f'{number}.png')
    files = sorted(tmp_path.iterdir())
    whole = extract_features(encoder, images)
    np.testing.assert_allclose(extract_features(encoder, (file for file in files), batch_size=2), whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(extract_features(encoder, [str(files[1])]), whole[1:2], rtol=1e-5, atol=1e-6)


def test_dropout_is_off_and_the_images_may_have_another_size(tiny_cae, images):
    encoder = tiny_cae(backbone=dict(drop_path_rate=0.5)).backbone.train()
    features = extract_features(encoder, images, img_size=(32, 96))
    np.testing.assert_array_equal(features, extract_features(encoder, images, img_size=(32, 96)))
    assert np.abs(features - extract_features(encoder, images)).max() > 1e-3


def test_a_checkpoint_brings_its_own_normalisation(tiny_cae, images, tmp_path):
    model = tiny_cae()
    config = 'model = dict(backbone=dict(arch=dict(num_heads=4)))\ndata_preprocessor = dict(mean=[100.0, 110, 120.0], std=[50, 60, 70])'
    checkpoint = tmp_path / 'checkpoint.pth'
    torch.save(dict(state_dict=model.state_dict(), meta=dict(cfg=config)), checkpoint)
    wanted = by_hand(model.backbone.eval(), images[0], mean=(100, 110, 120), std=(50, 60, 70))
    np.testing.assert_allclose(extract_features(checkpoint, images[:1])[0], wanted, rtol=1e-4, atol=1e-4)
    # Arguments have the last word.
    other = extract_features(checkpoint, images[:1], mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0), out_type='avg_featmap')
    encoder = tiny_cae(backbone=dict(out_type='avg_featmap')).backbone.eval()
    np.testing.assert_allclose(other[0], by_hand(encoder, images[0], mean=(0, 0, 0), std=(255, 255, 255)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    'text, found',
    [
        ('model = dict(data_preprocessor=dict(mean=[1.0, 2.0, 3.0], std=[4, 5, 6]))', dict(mean=(1.0, 2.0, 3.0), std=(4, 5, 6))),
        ('data_preprocessor = dict(mean=[1.0, 2.0, 3.0])', dict(mean=(1.0, 2.0, 3.0))),
        ('data_preprocessor = dict(mean=[0.5], std=read())', dict(mean=(0.5,))),
        ('data_preprocessor = dict(mean=[], std=read())', {}),
        ('x = 1', {}),
    ],
)
def test_normalisation_in_a_config_text(text, found):
    assert normalization_of(dict(meta=dict(cfg=text))) == found
    assert normalization_of(dict(state_dict={})) == {}


def test_bad_input_is_named(tiny_cae, images, tmp_path):
    encoder = tiny_cae().backbone
    with pytest.raises(DataError, match='no images'):
        extract_features(encoder, [])
    with pytest.raises(DataError, match='in brackets'):
        extract_features(encoder, 'image.png')
    with pytest.raises(DataError, match='nothing.png'):
        extract_features(encoder, [tmp_path / 'nothing.png'])
    with pytest.raises(DataError, match=r'float64 of shape \(8, 8, 3\)'):
        extract_features(encoder, [np.zeros((8, 8, 3))])
    with pytest.raises(ConfigError, match='out_type'):
        extract_features(encoder, images, out_type='raw')
    with pytest.raises(ValueError, match='multiple of the patch size'):
        extract_features(encoder, images, img_size=50)
    with pytest.raises(ConfigError, match='4 channels'):
        extract_features(tiny_cae(backbone=dict(in_channels=4)).backbone, images)
    with pytest.raises(ConfigError, match='one block'):
        extract_features(tiny_cae(backbone=dict(out_indices=(0, 1))).backbone, images)


@pytest.mark.parametrize('channels', [1, 5])
def test_other_channels(tiny_cae, channels, tmp_path):
    """Files and arrays, 8 bits and 16, against normalising and calling by hand; the statistics are asked for."""
    import tifffile

    encoder = tiny_cae(backbone=dict(in_channels=channels)).backbone.eval()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, channels), np.uint8)
    settings = dict(mean=list(range(channels)), std=[50.0], device='cpu')
    features = extract_features(encoder, [pixels], **settings)
    with torch.no_grad():
        view = torch.from_numpy((pixels - np.arange(channels, dtype=np.float32)) / 50).permute(2, 0, 1)[None]
        np.testing.assert_allclose(features, encoder(view)[0], rtol=1e-4, atol=1e-5)
    if channels == 5:
        tifffile.imwrite(tmp_path / 'x.tif', pixels.astype(np.uint16) * 257, photometric='minisblack', planarconfig='contig')
    else:
        Image.fromarray(pixels[..., 0]).save(tmp_path / 'x.tif')
    np.testing.assert_allclose(extract_features(encoder, [tmp_path / 'x.tif'], **settings), features, rtol=1e-4, atol=1e-5)
    wide = extract_features(encoder, [np.repeat(pixels, 2, axis=1)], img_size=(64, 64), **settings)
    assert wide.shape == features.shape and not np.allclose(wide, features)
    with pytest.raises(ConfigError, match='nothing tells how they are normalised'):
        extract_features(encoder, [pixels])
    with pytest.raises(ConfigError, match=f'2 values and std 1, but the encoder reads {channels} channels'):
        extract_features(encoder, [pixels], mean=[0, 0], std=[1])
    with pytest.raises(DataError, match=rf'\(height, width, {channels}\), or float32'):
        extract_features(encoder, [pixels.repeat(2, axis=2)], **settings)
