"""extract_features: the features a person would get by hand, whatever images come as, in whatever batches; the encoder stays as it is."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmpretrain.registry import TRANSFORMS
from PIL import Image

from mmcae.apis import View, extract_features
from mmcae.apis.images import load_image
from mmcae.apis.view import IMAGENET_MEAN, IMAGENET_STD
from mmcae.checkpoints import ViewSpec, metadata
from mmcae.utils.errors import CheckpointError, ConfigError, DataError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def images():
    random = np.random.default_rng(0)
    return [random.integers(0, 256, size, np.uint8) for size in ((64, 64, 3), (80, 100, 3), (40, 30, 3))]


def by_hand(encoder, image, size=64, mean=IMAGENET_MEAN, std=IMAGENET_STD):
    """Resize, crop and normalise step by step."""
    height, width = image.shape[:2]
    side = round(size * 256 / 224)
    width, height = (side, int(side * height / width)) if width < height else (int(side * width / height), side)
    left, top = round((width - size) / 2), round((height - size) / 2)
    picture = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
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


def test_dropout_is_off_and_the_images_may_have_another_size(tiny_cae, images):
    encoder = tiny_cae(backbone=dict(drop_path_rate=0.5)).backbone.train()
    features = extract_features(encoder, images, img_size=(32, 96))
    np.testing.assert_array_equal(features, extract_features(encoder, images, img_size=(32, 96)))
    assert np.abs(features - extract_features(encoder, images)).max() > 1e-3


def test_a_checkpoint_brings_its_own_normalisation(tiny_cae, images, tmp_path):
    model = tiny_cae()
    spec = model.backbone.spec.replaced(view=ViewSpec((100.0, 110.0, 120.0), (50.0, 60.0, 70.0), (64, 64)))
    checkpoint = tmp_path / 'checkpoint.pth'
    torch.save(dict(state_dict=model.state_dict(), meta=metadata(spec)), checkpoint)
    wanted = by_hand(model.backbone.eval(), images[0], mean=(100, 110, 120), std=(50, 60, 70))
    np.testing.assert_allclose(extract_features(checkpoint, images[:1])[0], wanted, rtol=1e-4, atol=1e-4)
    # Arguments have the last word.
    other = extract_features(checkpoint, images[:1], mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0), out_type='avg_featmap')
    encoder = tiny_cae(backbone=dict(out_type='avg_featmap')).backbone.eval()
    np.testing.assert_allclose(other[0], by_hand(encoder, images[0], mean=(0, 0, 0), std=(255, 255, 255)), rtol=1e-4, atol=1e-4)


KINDS = {
    'text': lambda file: str(file),
    'path': lambda file: file,
    'home': lambda file: f'~/{file.name}',
    'bytes': lambda file: file.read_bytes(),
    'open file': lambda file: io.BytesIO(file.read_bytes()),
    'PIL': lambda file: Image.open(file),
    'array': lambda file: np.array(Image.open(file)),
    'read-only array': lambda file: np.asarray(Image.open(file)),
    'array of another order': lambda file: np.asfortranarray(np.array(Image.open(file))),
    'floats': lambda file: np.array(Image.open(file)) / 255,
    'tensor': lambda file: torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1),
    'floats in a tensor': lambda file: torch.from_numpy(np.array(Image.open(file)) / np.float32(255)).permute(2, 0, 1).requires_grad_(),
}


@pytest.mark.parametrize('kind', KINDS)
def test_whatever_images_come_as(tiny_cae, images, tmp_path, monkeypatch, kind):
    """Many, one, a generator: the same features."""
    monkeypatch.setenv('HOME', str(tmp_path))
    encoder = tiny_cae().backbone
    files = [tmp_path / f'{number}.png' for number in range(3)]
    for file, image in zip(files, images, strict=True):
        Image.fromarray(image).save(file)
    expected = extract_features(encoder, images)
    tolerance = dict(rtol=0, atol=0.05) if 'floats' in kind else dict(rtol=1e-5, atol=1e-6)  # floats are not rounded after resizing
    make = KINDS[kind]
    np.testing.assert_allclose(extract_features(encoder, (make(file) for file in files), batch_size=2), expected, **tolerance)
    single = extract_features(encoder, make(files[1]))
    assert single.shape == (1, 48)
    np.testing.assert_allclose(single, expected[1:2], **tolerance)


def test_batches_in_one_array(tiny_cae, images):
    encoder = tiny_cae().backbone
    several = np.stack([images[0], images[0][::-1]])
    expected = extract_features(encoder, list(several))
    for batch in (several, torch.from_numpy(several).permute(0, 3, 1, 2), np.array(several, np.float64) / 255):
        np.testing.assert_allclose(extract_features(encoder, batch), expected, atol=0.05)
    half = torch.from_numpy(several).permute(0, 3, 1, 2).to(torch.bfloat16) / 255
    assert extract_features(encoder, half).shape == expected.shape


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'CMYK', 'YCbCr', 'HSV', 'I;16'])
def test_pil_images_of_any_mode(tiny_cae, tmp_path, mode):
    """Each as the same image in a file is read, or at least without a complaint where no file can hold it."""
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 80), np.uint8))
    image = Image.fromarray(np.asarray(grey, np.uint16) * 257) if mode == 'I;16' else grey.convert('RGB').convert(mode)
    assert image.mode == mode
    features = extract_features(tiny_cae().backbone, image)
    if mode in ('1', 'L', 'LA', 'RGB', 'RGBA', 'I;16'):
        image.save(tmp_path / 'x.png')
        np.testing.assert_allclose(features, extract_features(tiny_cae().backbone, tmp_path / 'x.png'), rtol=1e-5, atol=1e-6)


def test_the_exif_orientation_of_pil_images(tiny_cae, images):
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(images[1]).save(buffer, 'PNG', exif=exif)
    upright = extract_features(tiny_cae().backbone, np.rot90(images[1], -1))
    np.testing.assert_allclose(extract_features(tiny_cae().backbone, Image.open(buffer)), upright, rtol=1e-5, atol=1e-6)


def test_grey_is_read_as_rgb(tiny_cae):
    grey = np.random.default_rng(0).integers(0, 256, (70, 80), np.uint8)
    expected = extract_features(tiny_cae().backbone, np.stack([grey] * 3, axis=2))
    for image in (grey, grey[..., None], torch.from_numpy(grey), torch.from_numpy(grey)[None], Image.fromarray(grey)):
        np.testing.assert_allclose(extract_features(tiny_cae().backbone, image), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ('config', 'size', 'shape'),
    [
        *(('imagenet', 224, shape) for shape in ((300, 451), (517, 260), (224, 224), (256, 256), (40, 31), (1000, 999))),
        ('digits', 32, (32, 32)),
    ],
)
def test_the_view_is_that_of_the_probes(tmp_path, config, size, shape):
    """Pixel for pixel what the test pipelines of the probes' configs give; digits have one size and come as they are."""
    path = tmp_path / 'x.png'
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)).save(path)
    results = dict(img_path=str(path))
    for transform in Config.fromfile(ROOT / f'configs/_base_/datasets/{config}_classification.py').test_pipeline[:-1]:
        results = TRANSFORMS.build(transform)(results)
    np.testing.assert_array_equal(View((size, size)).cut(load_image(path)), results['img'][..., ::-1])


def test_the_share_that_is_kept(tiny_cae, images):
    encoder = tiny_cae().backbone
    whole = extract_features(encoder, images[:1], crop=1)
    pixels = (images[0] - np.float32(IMAGENET_MEAN)) / np.float32(IMAGENET_STD)
    with torch.no_grad():
        expected = encoder.eval()(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0]
    np.testing.assert_allclose(whole, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_the_encoder_computes_in_its_own_dtype(tiny_cae, images, dtype):
    encoder, full = tiny_cae().backbone, tiny_cae().backbone
    features = extract_features(encoder.to(dtype), images)
    assert features.dtype == np.float32 and encoder.cls_token.dtype == dtype
    expected = extract_features(full, images)
    assert np.abs(features - expected).max() < {torch.float16: 0.05, torch.bfloat16: 0.3, torch.float64: 1e-4}[dtype]


def test_the_encoder_stays_as_it_is(tiny_cae, images):
    """Modes and gradients part by part, also after an error, also where they are not what frozen_stages says."""
    encoder = tiny_cae(backbone=dict(frozen_stages=1, drop_path_rate=0.5)).backbone.train()
    encoder.blocks[0].attn.qkv.weight.requires_grad_(True)
    encoder.blocks[2].eval()

    def state():
        flags = {name: (parameter.requires_grad, parameter.device, parameter.dtype) for name, parameter in encoder.named_parameters()}
        values = {name: value.clone() for name, value in encoder.state_dict().items()}
        return flags, {name: module.training for name, module in encoder.named_modules()}, encoder.out_type, encoder.out_indices, values

    before = state()
    assert len(set(before[1].values())) == 2
    extract_features(encoder, images)
    with pytest.raises(DataError):
        extract_features(encoder, [images[0], None], batch_size=1)
    after = state()
    assert before[:4] == after[:4] and all((before[4][name] == value).all() for name, value in after[4].items())
    # And a training goes on from here: nothing kept is without its gradient.
    encoder(torch.randn(2, 3, 64, 64))[0].sum().backward()
    encoder(torch.randn(2, 3, 32, 96))[0].sum().backward()


def test_another_device_gets_a_copy(tiny_cae, images):
    encoder = tiny_cae().backbone
    with pytest.raises(NotImplementedError):  # the device without data: the copy is there, the encoder here
        extract_features(encoder, images, device='meta')
    assert encoder.cls_token.device.type == 'cpu'
    np.testing.assert_array_equal(extract_features(encoder, images, device='cpu'), extract_features(encoder, images))


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_an_encoder_on_a_gpu(tiny_cae, images):
    encoder = tiny_cae().backbone.cuda()
    features = extract_features(encoder, images)
    assert encoder.cls_token.is_cuda
    np.testing.assert_allclose(features, extract_features(tiny_cae().backbone, images, device='cpu'), rtol=1e-2, atol=1e-2)
    tensors = [torch.from_numpy(image).permute(2, 0, 1).cuda() for image in images]
    np.testing.assert_allclose(extract_features(encoder, tensors), features, rtol=1e-4, atol=1e-4)
    on_gpu = extract_features(tiny_cae().backbone, images, device='cuda')
    np.testing.assert_allclose(on_gpu, features, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ('images', 'message'),
    [
        ([], 'was given no images'),
        (np.zeros((0, 8, 8, 3), np.uint8), 'was given no images'),
        (iter(()), 'was given no images'),
        (None, 'Images come as a list .* got a NoneType'),
        (3, 'got a int'),
        ({'a': 1}, 'got a dict'),
        ([np.zeros((8, 8, 3), np.uint8), None], 'image 1 is a NoneType'),
        (['{folder}/nothing.png'], 'There is no image .*nothing.png'),
        ('{folder}', 'is a folder: give the image files in it'),
        ([b'no image'], 'image 0 cannot be read as an image'),
        (
            [np.full((8, 8, 3), 128.0)],
            r'image 0, an array of float64 .* has values from 128 to 128: floats are pixels in \[0, 1\]',
        ),
        ([torch.randn(3, 8, 8)], r'image 0, a tensor of float32 and shape \(3, 8, 8\), has values from .*before any normalisation'),
        ([np.full((8, 8, 3), np.nan)], 'has values from nan'),
        ([np.zeros((8, 8, 3), np.int64)], 'image 0, an array of int64 and shape .*the range of other types is unknown'),
        ([np.zeros((8, 8, 3), np.uint16)], 'uint16'),
        ([np.zeros((8, 8, 3), bool)], 'bool'),
        ([np.zeros((3, 8, 8), np.uint8)], r'shape \(3, 8, 8\): expected \(height, width, 3\)'),
        ([torch.zeros(8, 8, 3, dtype=torch.uint8)], r'image 0, a tensor of uint8 and shape \(8, 8, 3\): expected \(3, height, width\)'),
        ([np.zeros((8, 0, 3), np.uint8)], 'image 0'),
        ([np.zeros((8, 8, 4), np.uint8)], r'expected \(height, width, 3\)'),
        (np.zeros((2, 2, 8, 8, 3), np.uint8), 'An array or tensor of images has 4 axes'),
        (np.zeros(3), 'An array or tensor of images has 4 axes'),
        ([Image.new('F', (8, 8))], 'image 0, a PIL image of mode F, cannot be read: .*unknown range'),
        ([Image.new('I', (8, 8))], 'image 0, a PIL image of mode I, cannot be read: .*unknown range'),
    ],
)
def test_images_that_cannot_be_read_are_named(tiny_cae, tmp_path, images, message):
    def named(image):
        return image.format(folder=tmp_path) if isinstance(image, str) else image

    images = [named(image) for image in images] if isinstance(images, list) else named(images)
    with pytest.raises(DataError, match=message):
        extract_features(tiny_cae().backbone, images)


def test_one_bad_file_among_many_is_named(tiny_cae, images, tmp_path):
    for number in range(5):
        Image.fromarray(images[0]).save(tmp_path / f'{number}.png')
    (tmp_path / '3.png').write_bytes((tmp_path / '3.png').read_bytes()[:500])
    with pytest.raises(DataError, match='3.png cannot be read'):
        extract_features(tiny_cae().backbone, sorted(tmp_path.iterdir()), batch_size=2)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)), r'look like those of pixels in \[0, 1\].*multiply both by 255'),
        (dict(mean=(0.5, 0.5, 0.5)), r'pixels in \[0, 1\]'),
        (dict(std=(0.229, 0.224, 0.225)), r'pixels in \[0, 1\]'),
        (dict(mean=0, std=1), r'pixels in \[0, 1\]'),
        (dict(std=(50, 0, 50)), 'must be positive'),
        (dict(std=-1.0), 'must be positive'),
        (dict(mean=(1, 2)), 'mean has 2 values and std 3, but the encoder reads 3 channels'),
        (dict(mean='imagenet'), "mean='imagenet' must be a number"),
        (dict(mean=(float('nan'),)), 'must be a number'),
        (dict(mean=()), 'must be a number'),
        (dict(img_size=50), 'multiple of the patch size'),
        (dict(img_size=0), 'img_size=0 must be a number of pixels'),
        (dict(img_size=(64,)), 'must be a number of pixels'),
        (dict(img_size=64.0), 'must be a number of pixels'),
        (dict(batch_size=0), 'batch_size=0 must be a whole number, at least 1'),
        (dict(batch_size=None), 'batch_size=None'),
        (dict(crop=0), 'crop=0'),
        (dict(crop=1.5), 'crop=1.5'),
        (dict(device='gpu'), "device='gpu' cannot be used"),
        (dict(out_type='raw'), 'out_type.*for a checkpoint only'),
    ],
)
def test_settings_that_cannot_be(tiny_cae, images, settings, message):
    with pytest.raises(ConfigError, match=message):
        extract_features(tiny_cae().backbone, images, **settings)


@pytest.mark.parametrize('values', [(np.array([100.0, 110, 120]), torch.tensor([50.0, 60, 70])), (110, 60), ([110], (60, 60, 60))])
def test_what_a_mean_may_be(tiny_cae, images, values):
    mean, std = values
    encoder = tiny_cae().backbone.eval()
    expected = by_hand(encoder, images[0], mean=np.broadcast_to(mean, 3), std=np.broadcast_to(std, 3))
    np.testing.assert_allclose(extract_features(encoder, images[0], mean=mean, std=std)[0], expected, rtol=1e-4, atol=1e-4)


def test_encoders_that_cannot_be_used(tiny_cae, images):
    with pytest.raises(ConfigError, match='got a CAE: give its encoder, such as its `backbone`'):
        extract_features(tiny_cae(), images)
    for source in (None, 3, ['a.pth']):
        with pytest.raises(ConfigError, match='Features come from a checkpoint or an encoder; got a'):
            extract_features(source, images)
    with pytest.raises(CheckpointError, match='no checkpoint .*absent.pth'):
        extract_features('~/absent.pth', images)
    with pytest.raises(ConfigError, match='4 channels'):
        extract_features(tiny_cae(backbone=dict(in_channels=4)).backbone, images)
    with pytest.raises(ConfigError, match='one block'):
        extract_features(tiny_cae(backbone=dict(out_indices=(0, 2))).backbone, images)


@pytest.mark.parametrize('channels', [1, 5])
def test_other_channels(tiny_cae, channels, tmp_path):
    """Files and arrays, 8 bits and 16, against normalising and calling by hand; the statistics are asked for."""
    import tifffile

    encoder = tiny_cae(backbone=dict(in_channels=channels)).backbone.eval()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, channels), np.uint8)
    settings = dict(mean=list(range(channels)), std=[50.0], device='cpu', crop=1)
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
    with pytest.raises(DataError, match=rf'expected \(height, width, {channels}\)'):
        extract_features(encoder, [pixels.repeat(2, axis=2)], **settings)
