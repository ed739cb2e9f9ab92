"""Reading images: every mode that PIL knows comes out as the upright RGB picture a viewer shows; what cannot be read is named."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from mmcae.datasets.transforms import LoadImage
from mmcae.datasets.transforms.image_file import ImageFile
from mmcae.utils.errors import DataError

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def load(path, **kwargs):
    return LoadImage(**kwargs)({'img_path': str(path)})['img']


def test_png_is_read_bit_for_bit(tmp_path):
    Image.fromarray(RGB).save(tmp_path / 'a.png')
    results = LoadImage()({'img_path': str(tmp_path / 'a.png')})
    np.testing.assert_array_equal(results['img'], RGB)
    assert results['img'].dtype == np.uint8
    assert results['img_shape'] == results['ori_shape'] == (20, 30)


@pytest.mark.parametrize(
    'orientation, turned', [(1, RGB), (2, RGB[:, ::-1]), (3, RGB[::-1, ::-1]), (6, np.rot90(RGB, -1)), (8, np.rot90(RGB))]
)
def test_exif_orientation_is_applied(tmp_path, orientation, turned):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB).save(tmp_path / 'a.png', exif=exif)
    np.testing.assert_array_equal(load(tmp_path / 'a.png'), turned)


def jpegs():
    """Kinds of JPEG: names and options of PIL's writer."""
    smooth = Image.fromarray(RGB).resize((157, 99), Image.Resampling.BICUBIC)
    yield 'halved chroma', smooth, dict(subsampling='4:2:0')
    yield 'full chroma, progressive', smooth, dict(subsampling='4:4:4', progressive=True)
    yield 'chroma halved in width', smooth, dict(subsampling='4:2:2', quality=40)
    yield 'stored as RGB', smooth, dict(keep_rgb=True)
    yield 'grey', smooth.convert('L'), {}
    yield 'CMYK', smooth.convert('CMYK'), {}
    for orientation in range(1, 10):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield f'orientation {orientation}', smooth, dict(exif=exif)


@pytest.mark.parametrize('picture, options', [pytest.param(*rest, id=kind) for kind, *rest in jpegs()])
def test_jpeg_has_pils_pixels(tmp_path, picture, options):
    path = tmp_path / 'a.jpg'
    picture.save(path, **options)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert('RGB'))
    image = load(path)
    np.testing.assert_array_equal(image, expected)
    assert image.flags.c_contiguous and image.flags.writeable
    if picture.mode != 'CMYK':
        assert ImageFile(path).decode_jpeg(1) is not None  # by OpenCV
    path.write_bytes(path.read_bytes() + b'what some cameras append')
    np.testing.assert_array_equal(load(path), expected)


@pytest.mark.parametrize('keep', [0.5, 0.99, -2])
def test_cut_jpeg_is_named_whatever_opencv_thinks_of_it(tmp_path, keep):
    path = tmp_path / 'cut.jpg'
    Image.fromarray(RGB).resize((157, 99)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: keep if keep < 0 else int(keep * len(data))])
    with pytest.raises(DataError, match='cut.jpg'):
        load(path)


def test_grey_and_bilevel_images_get_three_equal_channels(tmp_path):
    Image.fromarray(RGB[..., 0]).save(tmp_path / 'grey.png')
    np.testing.assert_array_equal(load(tmp_path / 'grey.png'), RGB[..., :1].repeat(3, axis=2))
    Image.fromarray(RGB[..., 0] > 127).save(tmp_path / 'bilevel.png')
    np.testing.assert_array_equal(load(tmp_path / 'bilevel.png')[..., 2], np.where(RGB[..., 0] > 127, 255, 0))


def test_sixteen_bit_grey_keeps_its_brightness(tmp_path):
    values = RGB[..., 0].astype(np.uint16) * 257
    for name in ('deep.png', 'deep.tif'):
        Image.fromarray(values).save(tmp_path / name)
        np.testing.assert_array_equal(load(tmp_path / name), RGB[..., :1].repeat(3, axis=2))


def test_palette_image_shows_its_colours(tmp_path):
    palette = Image.fromarray(RGB).quantize(200)
    palette.save(tmp_path / 'a.gif')
    np.testing.assert_array_equal(load(tmp_path / 'a.gif'), np.asarray(palette.convert('RGB')))


def test_transparent_pixels_are_white_and_half_transparent_ones_half_white(tmp_path):
    alpha = np.full((20, 30), 255, np.uint8)
    alpha[:5], alpha[5:10] = 0, 128
    Image.fromarray(np.dstack([RGB, alpha])).save(tmp_path / 'a.png')
    image = load(tmp_path / 'a.png').astype(float)
    np.testing.assert_array_equal(image[10:], RGB[10:])
    assert (image[:5] == 255).all()
    np.testing.assert_allclose(image[5:10], RGB[5:10] * (128 / 255) + 127, atol=1)


def test_transparent_palette_entry_is_white(tmp_path):
    picture = Image.fromarray(np.tile(np.arange(30, dtype=np.uint8) % 2, (20, 1)))
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.save(tmp_path / 'a.png', transparency=0)
    image = load(tmp_path / 'a.png')
    assert (image[:, ::2] == 255).all()
    assert (image[:, 1::2] == (200, 100, 50)).all()


def test_cmyk_jpeg_keeps_its_colours(tmp_path):
    red = Image.new('RGB', (16, 16), (200, 30, 40))
    red.convert('CMYK').save(tmp_path / 'a.jpg', quality=100)
    np.testing.assert_allclose(load(tmp_path / 'a.jpg'), np.asarray(red), atol=4)


def damaged(tmp_path, kind):
    path = tmp_path / f'{kind}.png'
    if kind == 'empty':
        path.write_bytes(b'')
    elif kind == 'text':
        path.write_text('not an image')
    elif kind == 'truncated':
        Image.fromarray(RGB).save(path)
        path.write_bytes(path.read_bytes()[:900])
    elif kind == 'float':
        path = path.with_suffix('.tif')
        Image.fromarray(RGB[..., 0].astype(np.float32)).save(path)
    elif kind == '32 bit':
        path = path.with_suffix('.tif')
        Image.fromarray(RGB[..., 0].astype(np.int32) * 100_000).save(path)
    return path


@pytest.mark.parametrize('kind', ['missing', 'empty', 'text', 'truncated', 'float', '32 bit'])
@pytest.mark.parametrize('cache', [False, True])
def test_what_cannot_be_read_is_named(tmp_path, kind, cache):
    path = damaged(tmp_path, kind)
    with pytest.raises(DataError, match=path.name):
        load(path, cache=cache)


def test_cache_reads_a_file_once_and_cannot_be_written_into(tmp_path):
    path = tmp_path / 'a.png'
    Image.fromarray(RGB).save(path)
    loader = LoadImage(cache=True)
    loader({'img_path': str(path)})
    path.unlink()
    image = loader({'img_path': str(path)})['img']
    np.testing.assert_array_equal(image, RGB)
    with pytest.raises(ValueError, match='read-only'):
        image += 1
    with pytest.raises(DataError):
        load(path)
