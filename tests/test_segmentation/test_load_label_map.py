"""Label maps as people have them: numbers as the file has them, or a refusal that names file and number."""

import io
import struct
import zlib

import mmcv
import numpy as np
import pytest
from mmengine.registry import init_default_scope
from PIL import Image

from mmcae.datasets.sources.image_headers import read_header
from mmcae.registry import TRANSFORMS
from mmcae.utils.errors import ConfigError, DataError

SIZE = HEIGHT, WIDTH = 6, 8
LABELS = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(SIZE) % 5


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmseg')


@pytest.fixture
def load(tmp_path):
    """Store a label map, an array or bytes, and load it with an image of its size."""

    def run(labels, name='0.png', image=None, exif=None, image_loader=None, settings=(), **info):
        path = tmp_path / name
        if isinstance(labels, bytes):
            path.write_bytes(labels)
        elif isinstance(labels, Image.Image):
            labels.save(path, **(dict(exif=exif) if exif else {}))
        else:
            Image.fromarray(labels).save(path)
        picture = tmp_path / 'image.jpg'
        (image or Image.new('RGB', (WIDTH, HEIGHT), (90, 60, 30))).save(picture)
        results = dict(img_path=str(picture), seg_map_path=str(path), seg_fields=[], reduce_zero_label=False, label_map=None) | info
        results = TRANSFORMS.build(dict(type='LoadImageFromFile') | (image_loader or {}))(results)
        return TRANSFORMS.build(dict(type='mmcae.LoadLabelMap', **dict(settings)))(results)['gt_seg_map']

    return run


def palette(labels):
    picture = Image.fromarray(labels)
    picture.putpalette([value for i in range(256) for value in (255 - i, i, i // 2)])
    return picture


def png(depth, rows, width):
    """A grey PNG of 1, 2 or 4 bits, which PIL does not write."""

    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    header = struct.pack('>IIBBBBB', width, len(rows), depth, 0, 0, 0, 0)
    data = zlib.compress(b''.join(b'\0' + row for row in rows))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', data) + chunk(b'IEND', b'')


@pytest.mark.parametrize(
    ('make', 'name'),
    [
        (lambda labels: labels, '0.png'),
        (lambda labels: labels.astype(np.uint16), '0.png'),
        (lambda labels: labels.astype(np.uint16), '0.tif'),
        (lambda labels: labels.astype(np.int32), '0.tif'),
        (lambda labels: labels.astype(np.float32), '0.tif'),
        (lambda labels: labels, '0.bmp'),
        (lambda labels: labels, '0.tif'),
        (palette, '0.png'),
        (palette, '0.gif'),
    ],
)
def test_every_form_of_the_same_numbers(load, make, name):
    found = load(make(LABELS), name)
    assert found.dtype == np.uint8 and (found == LABELS).all()


def test_one_bit(load):
    for labels in (LABELS > 2, np.zeros(SIZE, bool), np.ones(SIZE, bool)):
        assert (load(labels) == labels).all()


@pytest.mark.parametrize('reduce', [False, True])
@pytest.mark.parametrize('label_map', [None, {0: 255, 1: 0, 2: 255, 3: 1, 4: 2}])
def test_it_is_mmsegs(load, tmp_path, reduce, label_map):
    """With all 256 numbers, as far as they fit into the map."""
    labels = np.concatenate([np.arange(36), np.arange(244, 256)]).reshape(SIZE).astype(np.uint8)
    ours = load(labels, reduce_zero_label=reduce, label_map=label_map)
    info = dict(seg_map_path=str(tmp_path / '0.png'), seg_fields=[], reduce_zero_label=reduce, label_map=label_map)
    theirs = TRANSFORMS.build(dict(type='mmseg.LoadAnnotations'))(info)['gt_seg_map']
    assert ours.dtype == theirs.dtype and (ours == theirs).all()


@pytest.mark.parametrize(
    ('labels', 'name', 'message'),
    [
        (LABELS.astype(np.uint16) * 256, '0.png', r'has the numbers \[256, 512, 768, 1024\]; .*remap=\{256: \.\.\.\}'),
        (LABELS.astype(np.uint16) * 250, '0.png', r'has the numbers \[500, 750, 1000\]'),
        (LABELS.astype(np.int32) * -1, '0.tif', r'has the numbers \[-4, -3, -2, -1\]'),
        (LABELS.astype(np.int32) * 100_000, '0.tif', r'has the numbers \[100000, '),
        (LABELS.astype(np.float32) / 2, '0.tif', 'has the value 0.5; label maps hold whole numbers'),
        (np.where(LABELS > 3, np.nan, 1).astype(np.float32), '0.tif', 'has the value nan'),
        (np.where(LABELS > 3, np.inf, 1).astype(np.float32), '0.tif', 'has the value inf'),
        (np.full(SIZE, 1e30, np.float32), '0.tif', 'has the numbers'),
        (np.stack([LABELS] * 3, -1), '0.png', 'has 3 channels, RGB. The three colours are equal: keep one of them'),
        (np.stack([LABELS, LABELS, LABELS * 0], -1), '0.png', 'has 3 channels, RGB. A label map has one channel'),
        (np.stack([LABELS] * 4, -1), '0.png', 'has 4 channels, RGBA'),
        (np.stack([LABELS] * 2, -1), '0.png', 'has 2 channels, LA'),
        (np.stack([LABELS] * 3, -1), '0.bmp', 'has 3 channels'),
        (LABELS, '0.jpg', 'is a JPEG file, which changes the numbers'),
        (png(2, [bytes([0b00011011])] * 6, 4), '0.png', 'has grey values of 2 bits, from 0 to 3'),
        (png(4, [bytes([0x01, 0x23])] * 6, 4), '0.png', 'has grey values of 4 bits, from 0 to 15'),
        (b'no image', '0.png', 'cannot be read as a label map'),
        (b'', '0.png', 'cannot be read as a label map'),
        (LABELS[:, :4], '0.png', r'is 4x6 pixels \(width x height\), but .*image\.jpg is 8x6: .*nearest'),
        (LABELS.T, '0.png', r"is 6x8 pixels .*is 8x6: .*drawn_on='stored'"),
    ],
)
def test_refused(load, labels, name, message):
    with pytest.raises(DataError, match=rf'{name} {message}'):
        load(np.ascontiguousarray(labels) if isinstance(labels, np.ndarray) else labels, name)


def test_a_broken_file(load):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 5, SIZE, dtype=np.uint8)).save(buffer, 'PNG')
    with pytest.raises(DataError, match=r'0\.png cannot be read as a label map'):
        load(buffer.getvalue()[:-30])


def test_several_pages(load):
    buffer = io.BytesIO()
    Image.fromarray(LABELS).save(buffer, 'TIFF', save_all=True, append_images=[Image.fromarray(LABELS)])
    with pytest.raises(DataError, match=r'0\.tif holds 2 images'):
        load(buffer.getvalue(), '0.tif')


def test_grey_of_few_bits_without_a_pixel(load):
    """All 0 is 0, whether classes or brightness is meant."""
    assert not load(png(2, [bytes(2)] * 6, 8)).any()


@pytest.mark.parametrize('backend', ['cv2', 'tifffile'])
def test_other_decoders(load, backend):
    name, settings = '0.tif', dict(imdecode_backend=backend)
    assert (load(LABELS.astype(np.uint16), name, settings=settings) == LABELS).all()
    with pytest.raises(DataError, match=r'has the numbers \[256'):
        load(LABELS.astype(np.uint16) * 256, name, settings=settings)
    with pytest.raises(DataError, match='has 3 channels'):
        load(np.stack([LABELS] * 3, -1), name, settings=settings)


def test_images_without_labels():
    results = dict(img_path='0.jpg')
    assert TRANSFORMS.build(dict(type='mmcae.LoadLabelMap'))(results) == dict(img_path='0.jpg')


# ---- remap


@pytest.mark.parametrize('remap', [{255: 1}, {'255': 1}])
def test_binary_masks(load, remap):
    assert (load((LABELS > 2).astype(np.uint8) * 255, settings=dict(remap=remap)) == (LABELS > 2)).all()


def test_remap(load):
    """At once, not one after the other; before reduce_zero_label; numbers beyond 8 bits too."""
    remap = dict(remap={0: 1, 1: 0, 1000: 2, 65535: 255})
    labels = np.array([[0, 1, 1000, 65535, 3, 255, 0, 0]] * HEIGHT, np.uint16)
    assert load(labels, settings=remap)[0].tolist() == [1, 0, 2, 255, 3, 255, 1, 1]
    assert load(labels, settings=remap, reduce_zero_label=True)[0].tolist() == [0, 255, 1, 255, 2, 255, 0, 0]
    assert (load(LABELS, settings=dict(remap={4: 0, 300: 7})) == np.where(LABELS == 4, 0, LABELS)).all()


@pytest.mark.parametrize(
    'settings',
    [dict(remap=[1]), dict(remap={'a': 1}), dict(remap={1: 256}), dict(remap={1: -1}), dict(remap={1: None}), dict(drawn_on='x')],
)
def test_wrong_settings(settings):
    with pytest.raises(ConfigError, match='LoadLabelMap: (remap|drawn_on)='):
        TRANSFORMS.build(dict(type='mmcae.LoadLabelMap', **settings))


# ---- EXIF orientations


def stored(orientation, upright):
    """A picture that looks like `upright` once its orientation is applied; its EXIF, and its pixels as they are stored."""
    back = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # the transposition that undoes it
    picture = Image.fromarray(upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    return picture if back is None else picture.transpose(back), exif


@pytest.fixture
def pair(tmp_path):
    """An image with an orientation, and the numbers that belong to its upright view, by its brightness; load them."""

    def run(orientation, size, drawn_on=None, on='upright', tagged=False):
        upright = (np.arange(size[0] * size[1]).reshape(size) % 7 * 30).astype(np.uint8)
        labels = upright // 30
        picture, exif = stored(orientation, upright)
        picture.convert('RGB').save(tmp_path / 'image.png', exif=exif)
        label_map = Image.fromarray(labels) if on == 'upright' else stored(orientation, labels)[0]
        label_map.save(tmp_path / '0.png', **(dict(exif=exif) if tagged else {}))
        info = dict(img_path=str(tmp_path / 'image.png'), seg_map_path=str(tmp_path / '0.png'), seg_fields=[], reduce_zero_label=False)
        results = TRANSFORMS.build(dict(type='LoadImageFromFile'))(info)
        results = TRANSFORMS.build(dict(type='mmcae.LoadLabelMap', drawn_on=drawn_on))(results)
        assert results['img'].shape[:2] == size
        return (results['gt_seg_map'] == results['img'][..., 0] // 30).all() and (results['gt_seg_map'] == labels).all()

    return run


@pytest.mark.parametrize('size', [(4, 6), (5, 5)])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_image_and_labels_lie_on_each_other(pair, orientation, size):
    """Whatever is said about the map, and where the map has the orientation itself."""
    assert pair(orientation, size, 'upright')
    assert pair(orientation, size, 'stored', on='stored')
    assert pair(orientation, size, on='stored', tagged=True)
    assert pair(orientation, size, 'stored', on='stored', tagged=True)


@pytest.mark.parametrize('orientation', range(2, 9))
def test_nothing_is_guessed(pair, orientation):
    told = orientation > 4  # by the size, where the sides are exchanged
    if told:
        assert pair(orientation, (4, 6))
        with pytest.raises(DataError, match=r"0\.png is 4x6 pixels .* is 6x4: .*drawn_on='stored'"):
            pair(orientation, (4, 6), on='stored')
    for size in ((5, 5),) if told else ((5, 5), (4, 6)):
        for on in ('upright', 'stored'):
            with pytest.raises(
                DataError, match=rf'0\.png belongs to .*image\.png, which has the EXIF orientation {orientation}, .*drawn_on='
            ):
                pair(orientation, size, on=on)


@pytest.mark.parametrize('name', ['0.jpg', '0.png', '0.webp', '0.tif'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_headers(tmp_path, orientation, name):
    """The size that OpenCV loads."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new('RGB', (8, 6)).save(tmp_path / name, exif=exif)
    header = read_header(str(tmp_path / name))
    assert header.orientation == orientation and header.stored == (6, 8)
    assert mmcv.imread(str(tmp_path / name)).shape[:2] == header.upright
    assert header.ambiguous == (orientation in (2, 3, 4))


def test_orientation_behind_the_pixels_of_a_png(tmp_path):
    path, exif = tmp_path / '0.png', Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (8, 6)).save(path, exif=exif)
    data = path.read_bytes()
    start = data.index(b'eXIf') - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], 'big')
    path.write_bytes(data[:start] + data[end:-12] + data[start:end] + data[-12:])
    assert mmcv.imread(str(path)).shape[:2] == read_header(str(path)).upright == (8, 6)
