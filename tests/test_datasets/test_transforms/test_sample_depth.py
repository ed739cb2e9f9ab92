"""Files of more than 8 bits and of other numbers: through every reader they come out as the picture they are, or are refused by name."""

import io
import itertools
import struct

import numpy as np
import pytest
import tifffile
from mmcv.transforms import LoadImageFromFile
from PIL import Image

import mmcae.datasets  # noqa: F401  (registers the file backend)
from mmcae.datasets.transforms import LoadImage, image_file
from mmcae.datasets.transforms.image_file import ImageFile
from mmcae.utils.errors import ConfigError, DataError

GREY = (np.add.outer(np.arange(20), np.arange(30)) * 5).astype(np.uint8)  # 0 to 240
RGB = np.dstack([GREY, GREY[::-1], GREY[:, ::-1]])


def ours(path, **settings):
    return LoadImage(**settings)({'img_path': str(path)})['img']


def labelled(backend):
    """As data sets with labels read images: by mmcv, which gives BGR."""

    def load(path):
        loader = LoadImageFromFile(imdecode_backend=backend, backend_args=dict(backend='mmcae.images'))
        return loader({'img_path': str(path)})['img'][..., ::-1]

    return load


READERS = {'LoadImage': ours, 'mmcv by OpenCV': labelled('cv2'), 'mmcv by PIL': labelled('pillow')}


@pytest.fixture(params=READERS)
def read(request):
    return READERS[request.param]


def white_of(dtype):
    return np.iinfo(dtype).max


def tiffs():
    """Names, options of tifffile and arrays of 0 to white; and what they show."""
    orders, photometrics = '<>', ('minisblack', 'miniswhite')
    for dtype, order, photometric in itertools.product(('uint8', 'uint16'), orders, photometrics):
        values = GREY.astype(dtype) * (white_of(dtype) // 255)
        shown = GREY if photometric == 'minisblack' else 255 - GREY
        yield f'{dtype} {order} {photometric}', values, dict(photometric=photometric, byteorder=order), shown
    for dtype, order, planes in itertools.product(('uint8', 'uint16'), orders, ('contig', 'separate')):
        values = RGB.astype(dtype) * (white_of(dtype) // 255)
        values = values if planes == 'contig' else values.transpose(2, 0, 1)
        yield f'RGB {dtype} {order} {planes}', values, dict(photometric='rgb', planarconfig=planes, byteorder=order), RGB
    for order, photometric in itertools.product(orders, photometrics):
        shown = np.where(GREY > 100, 255, 0)
        yield f'bilevel {order} {photometric}', (GREY > 100) ^ (photometric == 'miniswhite'), dict(photometric=photometric), shown
    colours = np.stack([np.arange(256)[::-1], np.arange(256), np.full(256, 7)]).astype(np.uint16)
    yield 'palette', GREY, dict(photometric='palette', colormap=colours * 257), colours.T[GREY]
    for predictor in (None, True):
        options = dict(photometric='minisblack', compression='zlib', predictor=predictor)
        yield f'compressed, predictor {predictor}', GREY.astype(np.uint16) * 257, options, GREY
    yield 'tiles', GREY.astype(np.uint16) * 257, dict(photometric='minisblack', tile=(16, 16)), GREY
    yield 'large file format', GREY.astype(np.uint16) * 257, dict(photometric='minisblack', bigtiff=True), GREY
    yield 'first of two pages', np.stack([GREY, GREY // 2]), dict(photometric='minisblack'), GREY


@pytest.mark.parametrize('values, options, shown', [pytest.param(*rest, id=name) for name, *rest in tiffs()])
def test_unsigned_integers_show_their_picture_or_are_refused(tmp_path, read, values, options, shown):
    path = tmp_path / 'a.tif'
    tifffile.imwrite(path, values, **options)
    shown = np.broadcast_to(shown[..., None], (20, 30, 3)) if shown.ndim == 2 else shown
    deep = values.dtype == np.uint16
    rare = options.get('byteorder') == '>' and options['photometric'] == 'miniswhite' or options.get('planarconfig') == 'separate'
    if deep and rare:  # PIL does not know the first, and mixes up the second
        with pytest.raises(DataError, match='a.tif cannot be read'):
            read(path)
    else:
        np.testing.assert_array_equal(read(path), shown)


UNKNOWN = ['int8', 'int16', 'uint32', 'int32', 'uint64', 'int64', 'float16', 'float32', 'float64']


@pytest.mark.parametrize('dtype, order, photometric', list(itertools.product(UNKNOWN, '<>', ['minisblack', 'miniswhite', 'rgb'])))
def test_numbers_of_unknown_range_are_refused(tmp_path, read, dtype, order, photometric):
    path = tmp_path / 'a.tif'
    values = (RGB if photometric == 'rgb' else GREY).astype(dtype)
    tifffile.imwrite(path, values, photometric=photometric, byteorder=order)
    with pytest.raises(DataError, match=r'a.tif cannot be read as an image(: .*unknown range.*store it with| .PIL knows no such format)'):
        read(path)
    if photometric != 'rgb':
        with pytest.raises(DataError, match=r'a.tif (cannot be read as an image: .*unknown range|has the shape)'):
            tifffile.imwrite(path, np.dstack([values] * 2), photometric=photometric, byteorder=order, planarconfig='contig')
            ours(path, channels=2)


def twelve_bits(values, order):
    """A TIFF of packed 12-bit samples, which few programs write."""
    high, low = values[:, ::2] >> 4, (values[:, ::2] & 15) << 4 | values[:, 1::2] >> 8
    packed = np.stack([high, low, values[:, 1::2] & 255], -1).astype(np.uint8).tobytes()
    height, width = values.shape
    entries = [(256, 3, width), (257, 3, height), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 3, height)]
    entries.append((279, 4, len(packed)))
    start = 8 + len(packed)
    head = (b'II' if order == '<' else b'MM') + struct.pack(f'{order}HI', 42, start) + packed + struct.pack(f'{order}H', len(entries))
    for tag, kind, value in entries:
        head += struct.pack(f'{order}HHI', tag, kind, 1) + (
            struct.pack(f'{order}HH', value, 0) if kind == 3 else struct.pack(f'{order}I', value)
        )
    return head + bytes(4)


def test_packed_twelve_bits_are_not_black(tmp_path, read):
    (tmp_path / 'a.tif').write_bytes(twelve_bits(GREY.astype(np.uint16) * 16 + 5, '<'))
    np.testing.assert_array_equal(read(tmp_path / 'a.tif'), GREY[..., None].repeat(3, 2))
    (tmp_path / 'b.tif').write_bytes(twelve_bits(GREY.astype(np.uint16) * 16, '>'))
    with pytest.raises(DataError, match='b.tif cannot be read'):
        read(tmp_path / 'b.tif')


@pytest.mark.parametrize('colour', [False, True])
@pytest.mark.parametrize('suffix', ['png', 'tif'])
def test_sixteen_bits_that_hold_less_are_refused_and_black_is_black(tmp_path, read, suffix, colour):
    """The values of 8 or 12 bits in a file of 16 would come out black, or nearly."""
    path = tmp_path / f'a.{suffix}'
    values = (RGB if colour else GREY).astype(np.uint16)
    for brightest, factor in ((240, 1), (3840, 16)):
        write_sixteen_bits(path, values * factor)
        with pytest.raises(
            DataError, match=rf'a.{suffix} cannot be read as an image: .*16-bit .* reach only {brightest} of 65535 .*white=4095'
        ):
            read(path)
    write_sixteen_bits(path, values * 0)
    assert (read(path) == 0).all()
    values[0, 0] = 65535
    write_sixteen_bits(path, values)
    assert read(path).max() == 255


def write_sixteen_bits(path, values):
    if values.ndim == 2:
        Image.fromarray(values).save(path)
    elif path.suffix == '.tif':
        tifffile.imwrite(path, values, photometric='rgb')
    else:
        import cv2

        cv2.imwrite(str(path), values[..., ::-1])


@pytest.mark.parametrize(
    'dtype, white',
    [('uint16', 4095), ('uint16', 65535), ('int16', 240), ('int32', 255), ('int32', 1000), ('float32', 1.0), ('float32', 240)],
)
def test_who_says_which_value_is_white_gets_the_picture(tmp_path, dtype, white):
    shares = GREY / 240
    values = (shares * white).astype(dtype)
    path = tmp_path / 'a.tif'
    tifffile.imwrite(path, values, photometric='minisblack')
    expected = values.astype(float) / white * 255
    for channels in (1, 3):
        assert np.abs(ours(path, channels=channels, white=white) - expected[..., None]).max() <= 1
    tifffile.imwrite(path, np.dstack([values, values // 2]).astype(dtype), photometric='minisblack', planarconfig='contig')
    two = ours(path, channels=2, white=white)
    assert two.dtype == np.float32
    np.testing.assert_allclose(two[..., 0], expected, rtol=1e-6)
    with pytest.raises(
        DataError, match=rf'a.tif cannot be read as an image: .*go from 0 to {white:g}, beyond black, 0, and white, {white / 2:g}'
    ):
        ours(path, channels=2, white=white / 2)


def test_white_of_colours_and_of_eight_bits(tmp_path):
    values = RGB.astype(np.uint16) * 16
    tifffile.imwrite(tmp_path / 'a.tif', values, photometric='rgb')
    np.testing.assert_array_equal(ours(tmp_path / 'a.tif', white=4095), RGB)
    Image.fromarray(RGB).save(tmp_path / 'a.png')
    np.testing.assert_array_equal(ours(tmp_path / 'a.png', white=4095), RGB)  # has 255
    tifffile.imwrite(tmp_path / 'b.tif', np.dstack([values, values[..., :1]]), photometric='rgb', extrasamples=['unassalpha'])
    with pytest.raises(DataError, match='b.tif cannot be read as an image: .*nearly black without the lower half'):
        ours(tmp_path / 'b.tif', white=4095)
    floats = GREY.astype(np.float32)
    for culprit in (-1, np.nan, np.inf):
        floats[3, 4] = culprit
        tifffile.imwrite(tmp_path / 'c.tif', floats, photometric='minisblack')
        with pytest.raises(DataError, match='c.tif cannot be read as an image: .*beyond black'):
            ours(tmp_path / 'c.tif', white=255)
    with pytest.raises(ConfigError, match='white=0'):
        LoadImage(white=0)
    assert 'white=4095' in repr(LoadImage(white=4095))


def test_several_channels(tmp_path):
    path = tmp_path / 'a.tif'
    tifffile.imwrite(path, 255 - np.dstack([GREY, GREY]), photometric='miniswhite', planarconfig='contig')
    np.testing.assert_array_equal(ours(path, channels=2), np.dstack([GREY, GREY]))
    tifffile.imwrite(path, 65535 - np.dstack([GREY, GREY]).astype(np.uint16) * 257, photometric='miniswhite', planarconfig='contig')
    np.testing.assert_allclose(ours(path, channels=2), np.dstack([GREY, GREY]), atol=1e-4)
    with tifffile.TiffWriter(path) as file:
        for _ in range(2):
            file.write(GREY, photometric='palette', colormap=np.zeros((3, 256), np.uint16))
    with pytest.raises(DataError, match='a.tif cannot be read .*palette'):
        ours(path, channels=2)


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('dtype', ['uint8', 'uint16'])
def test_turned_tiffs_are_upright_and_have_their_size(tmp_path, orientation, dtype):
    """PIL turns pixels of TIFFs while it decodes, and exchanges their sides before."""
    rows_reversed, columns_reversed, exchanged = image_file.TURNS[orientation]
    upright = GREY[:: -1 if rows_reversed else 1, :: -1 if columns_reversed else 1]
    upright = upright.T if exchanged else upright
    path = tmp_path / 'a.tif'
    values = GREY.astype(dtype) * (white_of(dtype) // 255)
    tifffile.imwrite(path, values, photometric='minisblack', extratags=[(274, 'H', 1, orientation, True)])
    file = ImageFile(path)
    assert file.shape == upright.shape
    np.testing.assert_array_equal(file.read()[..., 1], upright)
    if dtype == 'uint16':
        tifffile.imwrite(path, RGB.astype(np.uint16), photometric='rgb', extratags=[(274, 'H', 1, orientation, True)])
        np.testing.assert_array_equal(ImageFile(path, white=255).read()[..., 0], upright)


def test_other_deep_formats(tmp_path, read):
    deep = GREY.astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / 'a.png')
    (tmp_path / 'a.pgm').write_bytes(b'P5 30 20 65535\n' + deep.astype('>u2').tobytes())
    (tmp_path / 'b.pgm').write_bytes(b'P5 30 20 4095\n' + (GREY.astype(np.uint16) * 16).astype('>u2').tobytes())
    for name in ('a.png', 'a.pgm', 'b.pgm'):
        assert np.abs(read(tmp_path / name).astype(int) - GREY[..., None]).max() <= 1, name


def test_colours_that_are_no_rgb(tmp_path, read):
    tifffile.imwrite(tmp_path / 'lab.tif', RGB, photometric='cielab')
    with pytest.raises(DataError, match='lab.tif cannot be read as an image: .*mode LAB: store it as RGB'):
        read(tmp_path / 'lab.tif')


def test_pages_beyond_the_first_are_told_of_once(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(image_file, 'print_log', lambda line, *_: lines.append(line))
    monkeypatch.setattr(image_file, '_told_of_pages', [])
    for name in ('a.tif', 'b.tif'):
        tifffile.imwrite(tmp_path / name, np.stack([GREY, GREY]), photometric='minisblack')
        np.testing.assert_array_equal(ours(tmp_path / name)[..., 0], GREY)
    (line,) = lines
    assert 'a.tif has several pages' in line


def test_ordinary_files_reach_other_libraries_as_they_are(tmp_path):
    from mmcae.datasets.sources.image_backend import ImageBackend, is_plain

    for name, options in {'a.jpg': {}, 'b.png': {}, 'c.webp': dict(lossless=True), 'd.bmp': {}, 'e.gif': {}}.items():
        Image.fromarray(RGB).save(tmp_path / name, **options)
        assert ImageBackend().get(tmp_path / name) == (tmp_path / name).read_bytes()
    for name in ('a.jpg', 'b.png'):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[:-300])
        assert not is_plain(data[:-300])
        with pytest.raises(DataError, match=f'{name} cannot be read'):  # OpenCV fills the rest with grey
            ImageBackend().get(tmp_path / name)
    (tmp_path / 'a.jpg').write_bytes(b'no image')
    with pytest.raises(DataError, match='a.jpg cannot be read as an image .PIL knows no such format'):
        ImageBackend().get(tmp_path / 'a.jpg')
    with pytest.raises(DataError, match='nothing.jpg is listed in the data set but does not exist'):
        ImageBackend().get(tmp_path / 'nothing.jpg')
    stream = io.BytesIO()
    Image.fromarray(GREY.astype(np.uint16) * 16).save(stream, 'PNG')
    (tmp_path / 'deep.png').write_bytes(stream.getvalue())
    assert ImageBackend(white=4095).get(tmp_path / 'deep.png').startswith(b'P6 30 20 255')


def test_every_loader_of_a_config_that_names_no_backend_gets_ours():
    from mmengine.config import Config

    from mmcae.datasets import read_images_alike

    flips = [dict(type='RandomFlip')]
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations'),
        dict(type='TestTimeAug', transforms=[flips, [dict(type='mmdet.LoadImageFromFile', backend_args=None)]]),
        dict(type='LoadImageFromFile', backend_args=dict(backend='petrel')),
    ]
    cfg = Config(dict(train_dataloader=dict(dataset=dict(type='X', datasets=[dict(pipeline=pipeline)])), model=dict(x=1)))
    read_images_alike(cfg)
    first, second, third, fourth = cfg.train_dataloader.dataset.datasets[0].pipeline
    assert first.backend_args.backend == third.transforms[1][0].backend_args.backend == 'mmcae.images'
    assert 'backend_args' not in second and fourth.backend_args.backend == 'petrel'
