"""ImageFolder: every way to name images, every kind of damaged file, and what takes their places."""

import errno
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from PIL import Image

from mmcae.datasets import ImageFolder
from mmcae.datasets.sources.bad_files import printable
from mmcae.registry import DATASETS
from mmcae.utils.errors import DataError, StorageError

RGB = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
PIPELINE = [
    dict(type='mmcae.LoadImage'),
    dict(type='mmcae.TwoViewCrop', size=32, second_size=16),
    dict(type='mmcae.RandomMaskGenerator', grid=4, ratio=0.5),
    dict(type='PackInputs'),
]


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmpretrain')


def bomb(path, side=60_000):
    """A PNG of 100 kilobytes that claims to have 3.6 gigapixels."""

    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    header = struct.pack('>IIBBBBB', side, side, 8, 0, 0, 0, 0)
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(bytes(10**7))) + chunk(b'IEND', b''))


def write_readable(folder):
    """One of each kind that is handled."""
    picture = Image.fromarray(RGB)
    picture.save(folder / 'jpeg.jpg')
    picture.save(folder / 'webp.webp')
    picture.save(folder / 'tiff.tif')
    picture.convert('CMYK').save(folder / 'cmyk.jpg')
    picture.convert('L').save(folder / 'grey.png')
    picture.quantize(64).save(folder / 'palette.png')
    Image.fromarray(np.dstack([RGB, RGB[..., :1]])).save(folder / 'rgba.png')
    Image.fromarray(RGB[..., 0].astype(np.uint16) * 257).save(folder / 'deep.png')
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(folder / 'turned.jpg', exif=exif)
    Image.fromarray(RGB[:1, :1]).save(folder / 'one_pixel.png')
    return 10


def write_bad(folder):
    """One of each kind that cannot be read."""
    (folder / 'empty.jpg').write_bytes(b'')
    (folder / 'text.png').write_text('not an image')
    Image.fromarray(RGB).save(folder / 'whole.jpg')
    (folder / 'truncated.jpg').write_bytes((folder / 'whole.jpg').read_bytes()[:700])
    (folder / 'whole.jpg').unlink()
    bomb(folder / 'bomb.png')
    (folder / 'broken_link.png').symlink_to(folder / 'nowhere.png')
    return {'empty.jpg', 'text.png', 'truncated.jpg', 'bomb.png', 'broken_link.png'}


@pytest.fixture
def mixed(tmp_path):
    folder = tmp_path / 'mixed'
    folder.mkdir()
    write_readable(folder)
    return folder, write_bad(folder)


def build(**settings):
    return DATASETS.build(dict(type='mmcae.ImageFolder', pipeline=PIPELINE, **settings))


def names(dataset):
    return [dataset.get_data_info(i)['img_path'] for i in range(len(dataset))]


def test_images_of_a_tree_and_of_a_part_of_it(image_folder):
    root = image_folder(count=2)
    expected = [f'{root}/{label}/{i:03d}.{suffix}' for label in ('cat', 'dog') for i, suffix in ((0, 'jpg'), (1, 'png'))]
    assert names(build(data_root=str(root))) == expected
    assert names(build(data_root=str(root), data_prefix='dog')) == expected[2:]
    assert names(build(data_root=f'{root}/', extensions=['.PNG'])) == expected[1::2]
    sample = build(data_root=str(root))[3]
    assert [view.shape for view in sample['inputs']] == [(3, 32, 32), (3, 16, 16)]
    assert sample['data_samples'].img_path == expected[3] and sample['data_samples'].sample_idx == 3
    assert 'bad_files' not in sample['data_samples'].metainfo


def test_parts_of_the_data_by_mmengines_means(image_folder):
    root = str(image_folder(count=5))
    everything = names(build(data_root=root))
    assert names(build(data_root=root, indices=3)) == everything[:3]
    assert names(build(data_root=root, indices=[7, 2])) == [everything[7], everything[2]]
    dataset = build(data_root=root)
    assert names(dataset.get_subset([0, 9])) == [everything[0], everything[9]]
    assert dataset.get_data_info(-1)['img_path'] == everything[-1] and len(dataset) == 10
    lazy = build(data_root=root, lazy_init=True)
    assert len(lazy) == 10 and lazy.get_data_info(0)['img_path'] == everything[0]


def test_a_list_of_files(image_folder, tmp_path):
    root = image_folder(count=2)
    absolute = f'{root}/dog/000.jpg'
    (root / 'list.txt').write_text(f'cat/001.png\r\n\n{absolute}\ncat/gone.png\n')
    dataset = build(data_root=str(root), ann_file='list.txt')
    assert names(dataset) == [f'{root}/cat/001.png', absolute, f'{root}/cat/gone.png']
    ((path, reason),) = dataset[2]['data_samples'].bad_files
    assert path.endswith('gone.png') and 'does not exist' in reason
    (tmp_path / 'elsewhere.txt').write_bytes(b'\xef\xbb\xbf001.png\n')  # as Windows programs save it
    assert names(build(data_root=str(root), data_prefix='cat', ann_file=str(tmp_path / 'elsewhere.txt'))) == [f'{root}/cat/001.png']


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(data_root='{root}/absent'), 'absent does not exist: name the folder of your images .data_root'),
        (dict(data_root='{root}/notes.txt'), 'notes.txt is no folder: .* a list of images goes into ann_file'),
        (
            dict(data_root='{root}/documents'),
            r'documents, left out: 1 files with other suffixes \(.pdf 1\)\. Images are .*webp',
        ),
        (dict(data_root='{root}', ann_file='absent.txt'), 'absent.txt cannot be read: No such file.*ann_file'),
        (dict(data_root='{root}', ann_file='wide.txt'), 'wide.txt is encoded in UTF-16 or UTF-32: save it as UTF-8'),
        (dict(data_root='{root}', ann_file='blank.txt'), 'blank.txt is empty: write one path per line'),
        (
            dict(data_root='{root}', ann_file='notes.txt'),
            'the first of the list .*notes.txt, does not exist: its lines must be',
        ),
    ],
)
def test_nothing_to_train_on(tmp_path, settings, message):
    (tmp_path / 'documents').mkdir()
    (tmp_path / 'documents' / 'a.pdf').touch()
    (tmp_path / 'notes.txt').write_text('remember the milk\n')
    (tmp_path / 'blank.txt').write_text('\n \n')
    (tmp_path / 'wide.txt').write_text('a.png', encoding='utf-16')
    with pytest.raises(DataError, match=message):
        build(**{key: value.format(root=tmp_path) for key, value in settings.items()})


def test_every_kind_of_image_is_handled_or_replaced(mixed):
    folder, bad = mixed
    dataset, reported = build(data_root=str(folder)), {}
    assert len(dataset) == 10 + len(bad)
    for i, path in enumerate(names(dataset)):
        sample = dataset[i]
        assert [view.shape for view in sample['inputs']] == [(3, 32, 32), (3, 16, 16)]
        info = sample['data_samples'].metainfo
        reported.update(info.get('bad_files', []))
        assert (path == info['img_path']) == (path.split('/')[-1] not in bad)
        assert info['img_path'].split('/')[-1] not in bad
    assert {path.split('/')[-1] for path in reported} == bad
    assert 'decompression bomb' in reported[f'{folder}/bomb.png'] and 'does not exist' in reported[f'{folder}/broken_link.png']


def test_the_replacement_depends_on_the_index_alone(mixed):
    folder, bad = mixed
    first, second = build(data_root=str(folder)), build(data_root=str(folder))
    broken = [i for i, path in enumerate(names(first)) if path.split('/')[-1] in bad]
    state = np.random.get_state()[1].copy()
    chosen = [first[i]['data_samples'].img_path for i in broken]
    np.random.seed(7)
    assert [second[i]['data_samples'].img_path for i in reversed(broken)] == chosen[::-1]
    assert len(set(chosen)) > 1 and len(state) == 624
    for dataset in (first, second):
        assert list(dataset.candidates(3)) == list(dataset.candidates(3)) and sorted(dataset.candidates(3)) == list(range(len(dataset)))


def test_reports_travel_through_loader_workers(mixed):
    folder, bad = mixed
    loader = torch.utils.data.DataLoader(build(data_root=str(folder)), batch_size=4, num_workers=2, collate_fn=pseudo_collate)
    found = {path for batch in loader for sample in batch['data_samples'] for path, _ in sample.metainfo.get('bad_files', ())}
    assert {path.split('/')[-1] for path in found} == bad


def test_a_folder_with_only_unreadable_files(tmp_path):
    for i in range(60):
        (tmp_path / f'{i}.png').write_text('no image')
    dataset = build(data_root=str(tmp_path))
    with pytest.raises(DataError, match='50 of 60 files were tried and none can be read: is this .*The first: .*0.png cannot be read'):
        dataset[0]


def test_a_test_set_has_no_replacements(mixed):
    folder, bad = mixed
    dataset = build(data_root=str(folder), test_mode=True)
    index = next(i for i, path in enumerate(names(dataset)) if path.endswith('empty.jpg'))
    with pytest.raises(DataError, match='empty.jpg'):
        dataset[index]


@pytest.mark.parametrize(
    'error', [OSError(errno.ESTALE, 'Stale file handle'), PermissionError(errno.EACCES, 'Permission denied')], ids=repr
)
def test_a_storage_that_fails_is_no_bad_file(image_folder, monkeypatch, error):
    """It ends the run, also where other errors of reading are replaced."""
    dataset, read, calls = build(data_root=str(image_folder())), Path.read_bytes, []

    def fail(path):
        calls.append(path)
        if path.match('dog/001.png') and len(calls) < failures:
            raise error
        return read(path)

    monkeypatch.setattr(Path, 'read_bytes', fail)
    monkeypatch.setenv('MMCAE_RETRY_SECONDS', '1')
    failures = 3
    if error.errno == errno.ESTALE:
        sample = dataset[5]['data_samples']
        assert sample.img_path.endswith('dog/001.png') and 'bad_files' not in sample and len(calls) == 3
    monkeypatch.setenv('MMCAE_RETRY_SECONDS', '0')
    failures = 10**9
    with pytest.raises(StorageError, match='dog/001.png cannot be read: (Stale file handle .ESTALE|Permission denied .EACCES)'):
        dataset[5]


def test_other_errors_are_not_taken_for_bad_files(image_folder):
    pipeline = [dict(type='mmcae.LoadImage'), dict(type='mmcae.TwoViewCrop', size=32, second_size=16), lambda results: 1 / 0]
    dataset = ImageFolder(data_root=str(image_folder()), pipeline=pipeline)
    with pytest.raises(ZeroDivisionError):
        dataset[0]


def test_memory_per_file_is_its_name_and_eight_bytes(image_folder):
    dataset = build(data_root=str(image_folder(count=20)))
    assert dataset.data_bytes.nbytes + dataset.data_address.nbytes == 40 * (len('cat/000.jpg') + 8)
    assert names(pickle.loads(pickle.dumps(dataset))) == names(dataset)


def test_printable_names():
    assert printable('a\tb\nc\udce9') == r'a\tb\nc\udce9' and printable('ä b') == 'ä b'
