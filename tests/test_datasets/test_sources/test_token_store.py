"""Stored views: drawn as the pipeline draws them, shown again to the pixel, tied to their files."""

import errno
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from PIL import Image

from mmcae.datasets import ImageFolder, PackedImages
from mmcae.datasets.sources import packing
from mmcae.datasets.sources.store_tokens import RandomViews, fill
from mmcae.datasets.sources.token_store import Manifest, TokenStore, content_key
from mmcae.datasets.transforms import LoadImage, StoredViews, TwoViewCrop
from mmcae.models import StoredTokens
from mmcae.utils.errors import ConfigError, DataError, StorageError

CROP = dict(type='mmcae.TwoViewCrop', size=24, second_size=16, scale=(0.2, 0.9))


def tokenize(images):
    """Eight times the brightness of tiles of 8x8 pixels: (B, C, 16, 16) -> (B, 2, 2)."""
    assert images.dtype == torch.uint8
    return (8 * torch.nn.functional.avg_pool2d(images.float().mean(1), 8)).long()


def folder_views(root, pipeline=None, views=3, seed=0):
    init_default_scope('mmpretrain')
    pipeline = pipeline or [dict(type='mmcae.LoadImage'), dict(type='RandomFlip', prob=0.5), CROP, dict(type='PackInputs')]
    return RandomViews(ImageFolder(data_root=str(root), pipeline=pipeline), views, seed)


@pytest.fixture
def store(image_folder, tmp_path):
    """A store of eight images, three views of each."""
    views = folder_views(image_folder(size=(40, 56)))
    fill(tmp_path / 'store', Manifest(8, 3, (2, 2), 2048, {}), views, tokenize, 3, 0)
    return tmp_path / 'store'


def test_a_view_and_its_tokens_belong_together(store, image_folder):
    root = image_folder(size=(40, 56))
    transform = StoredViews(str(store), 24)
    random.seed(0)
    seen, crop = set(), TwoViewCrop(24, 16)
    for row, path in enumerate(sorted(root.rglob('*.*g'))):
        for _ in range(20):
            results = transform(LoadImage()(dict(img_path=str(path), sample_idx=row)))
            image, tokens = results['img']
            number = next(k for k in range(3) if np.array_equal(transform.store.token[row, k], tokens[..., 0]))
            box, flip, _ = transform.store.view(row, number)
            pixels = np.asarray(Image.open(path).convert('RGB'))
            crop.sample_box = lambda *size, box=box: box
            expected = crop(dict(img=pixels[:, ::-1] if flip else pixels))['img']
            np.testing.assert_array_equal(image, expected[0])
            np.testing.assert_array_equal(tokens[..., 0], tokenize(torch.from_numpy(expected[1]).permute(2, 0, 1)[None])[0])
            seen.add((row, number, flip))
    assert len(seen) == 24 and {flip for *_, flip in seen} == {None, 'horizontal'}


def test_the_same_views_in_every_run_and_others_from_another_seed(image_folder):
    root = image_folder()
    first, again, other = folder_views(root)[2], folder_views(root)[2], folder_views(root, seed=1)[2]
    random.seed(5)
    assert np.array_equal(first['box'], again['box']) and np.array_equal(first['image'], again['image'])
    assert not np.array_equal(first['box'], other['box']) and len({tuple(box) for box in first['box']}) == 3


def test_interrupted_and_gone_on_with_it_is_the_same(image_folder, tmp_path):
    root = image_folder()
    (root / 'cat/001.png').write_bytes(b'no image')
    manifest = lambda: Manifest(8, 2, (2, 2), 2048, dict(a=1))  # noqa: E731
    fill(tmp_path / 'whole', manifest(), folder_views(root, views=2), tokenize, 2, 0)
    calls = []

    def interrupted(images):
        calls.append(images)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return tokenize(images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('mmcae.datasets.sources.store_tokens.SAVE_EVERY', -1)
        with pytest.raises(KeyboardInterrupt):
            fill(tmp_path / 'parts', manifest(), folder_views(root, views=2), interrupted, 2, 0)
    with pytest.raises(DataError, match='tokens of 4 of 8 images'):
        TokenStore(tmp_path / 'parts')
    fill(tmp_path / 'parts', manifest(), folder_views(root, views=2), tokenize, 2, 0)
    names = sorted(path.name for path in (tmp_path / 'whole').iterdir())
    assert names == ['.lock', 'box.npy', 'flip.npy', 'key.npy', 'store.json', 'token.npy', 'unreadable.tsv']
    assert all((tmp_path / 'whole' / name).read_bytes() == (tmp_path / 'parts' / name).read_bytes() for name in names)
    assert json.loads((tmp_path / 'whole/store.json').read_text())['unreadable'] == 1
    assert (tmp_path / 'whole/unreadable.tsv').read_text().startswith(f'{root}/cat/001.png\t')
    with pytest.raises(ConfigError, match='or it could not be read then'):
        TokenStore(tmp_path / 'whole').row(b'no image', 'anywhere/001.png')
    with pytest.raises(DataError, match='otherwise: views, a, b changed since'):
        fill(tmp_path / 'whole', Manifest(8, 3, (2, 2), 2048, dict(a=2, b=1)), folder_views(root), tokenize, 2, 0)


def shown(store, dataset=ImageFolder, **where):
    """Share of a data set's images whose stored tokens are those of the view that is shown."""
    init_default_scope('mmpretrain')
    pipeline = [dict(type='mmcae.LoadImage'), dict(type='mmcae.StoredViews', folder=str(store), size=16)]
    views = [sample['img'] for sample in dataset(**where, pipeline=pipeline)]
    return np.mean([(tokenize(torch.from_numpy(view).permute(2, 0, 1)[None])[0].numpy() == tokens[..., 0]).all() for view, tokens in views])


@pytest.fixture
def slides(tmp_path):
    """Tiles of two slides with the same names and the same size in bytes, and a store of their tokens, whose views are whole images."""
    rng = np.random.default_rng(0)
    for slide in 'ac':
        (tmp_path / 'tiles' / slide).mkdir(parents=True)
        for tile in range(8):
            pixels = np.kron(rng.integers(0, 256, (2, 2, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
            Image.fromarray(pixels).save(tmp_path / f'tiles/{slide}/{tile}.bmp')
    assert len({path.stat().st_size for path in tmp_path.rglob('*.bmp')}) == 1
    crop = dict(type='mmcae.TwoViewCrop', size=16, second_size=16, scale=(1, 1), ratio=(1, 1))
    views = folder_views(tmp_path / 'tiles', [dict(type='mmcae.LoadImage'), crop, dict(type='PackInputs')], views=1)
    fill(tmp_path / 'store', Manifest(16, 1, (2, 2), 2048, {}), views, tokenize, 3, 0)
    assert shown(tmp_path / 'store', data_root=str(tmp_path / 'tiles')) == 1
    return tmp_path / 'store', tmp_path / 'tiles'


def swap(one, other):
    one.rename(one.with_name('between'))
    other.rename(one)
    one.with_name('between').rename(other)


@pytest.mark.parametrize(
    'change',
    [
        lambda root: (root / 'a').rename(root / 'z'),  # a slide that comes last now
        lambda root: swap(root / 'a', root / 'c'),
        lambda root: swap(root / 'a/0.bmp', root / 'a/7.bmp'),
        lambda root: (root / 'a/0.bmp').unlink(),  # all later images move up
        lambda root: (root / 'a/0.bmp').rename(root / 'c/new name.bmp'),
        lambda root: shutil.copy(root / 'a/3.bmp', root / 'c/copy.bmp'),
        lambda root: root.rename(root.with_name('elsewhere')),
    ],
)
def test_tokens_belong_to_their_images_whatever_becomes_of_names_and_order(slides, change):
    store, root = slides
    change(root)
    assert shown(store, data_root=str(root if root.exists() else root.with_name('elsewhere'))) == 1


def test_packed_images_have_the_tokens_of_their_files(slides, tmp_path):
    store, root = slides
    names = sorted(str(path.relative_to(root)) for path in root.rglob('*.bmp'))
    packing.pack(packing.SourceFiles(root, names[::-1]), tmp_path / 'packed', {}, 10**6, 0, 0)
    assert shown(store, PackedImages, data_root=str(tmp_path / 'packed')) == 1


@pytest.mark.parametrize(
    'change', [lambda root: shutil.copy(root / 'a/1.bmp', root / 'a/9.bmp'), lambda root: (root / 'a/1.bmp').rename(root / 'a/9.bmp')]
)
def test_images_that_the_store_does_not_know_are_refused(slides, change):
    store, root = slides
    change(root)
    content = bytearray((root / 'a/9.bmp').read_bytes())
    content[-1] ^= 1
    (root / 'a/9.bmp').write_bytes(content)
    with pytest.raises(ConfigError, match=rf'{root}/a/9.bmp is none of the 16 images that {store} was made of: it is new, its content'):
        shown(store, data_root=str(root))


def test_an_image_that_is_read_otherwise(store, image_folder):
    path = sorted(image_folder(size=(40, 56)).rglob('*.*g'))[0]
    with pytest.raises(DataError, match='another size'):
        StoredViews(str(store), 24)(dict(img=np.zeros((4, 4, 3), np.uint8), img_path=str(path), img_bytes=path.read_bytes()))
    with pytest.raises(ConfigError, match='put mmcae.LoadImage before it'):
        StoredViews(str(store), 24)(dict(img=np.zeros((4, 4, 3), np.uint8), img_path=str(path)))


def test_a_storage_that_fails_stops_the_making_and_the_next_run_goes_on(image_folder, tmp_path, monkeypatch):
    root = image_folder()
    fill(tmp_path / 'whole', Manifest(8, 2, (2, 2), 2048, {}), folder_views(root, views=2), tokenize, 2, 0)
    monkeypatch.setenv('MMCAE_RETRY_SECONDS', '0')
    with monkeypatch.context() as patch:
        read = Path.read_bytes

        def stale(path):
            if path == root / 'dog/001.png':
                raise OSError(errno.ESTALE, 'Stale file handle', str(path))
            return read(path)

        patch.setattr(Path, 'read_bytes', stale)
        for _ in range(2):
            with pytest.raises(StorageError, match=r'dog/001.png cannot be read: Stale file handle \(ESTALE\)'):
                fill(tmp_path / 'parts', Manifest(8, 2, (2, 2), 2048, {}), folder_views(root, views=2), tokenize, 2, 0)
            assert json.loads((tmp_path / 'parts/store.json').read_text())['done'] == 4
    fill(tmp_path / 'parts', Manifest(8, 2, (2, 2), 2048, {}), folder_views(root, views=2), tokenize, 2, 0)
    for path in (tmp_path / 'whole').iterdir():
        assert path.read_bytes() == (tmp_path / 'parts' / path.name).read_bytes()


def test_names_are_those_within_the_folder(image_folder, tmp_path):
    root = image_folder()
    names = folder_views(root).names()
    shutil.copytree(root, tmp_path / 'other place')
    assert folder_views(tmp_path / 'other place').names() == names
    (root / 'cat/000.jpg').rename(root / 'cat/zzz.jpg')
    assert folder_views(root).names() != names


@pytest.mark.parametrize(
    'damage, message',
    [
        (
            lambda folder: (folder / 'store.json').unlink(),
            'There is no .*store.json: make it with mmcae tokens',
        ),
        (lambda folder: (folder / 'store.json').write_text('{'), 'store.json cannot be read'),
        (lambda folder: (folder / 'store.json').write_text('{"images": 8}'), 'version 1 of the layout.*reads version 2.*make it again'),
        (lambda folder: (folder / 'token.npy').unlink(), 'token.npy cannot be read'),
        (lambda folder: np.save(folder / 'box.npy', np.zeros(3)), r'box.npy is \(3,\), not \(8, 3, 4\)'),
    ],
)
def test_damaged_stores(store, damage, message):
    damage(store)
    with pytest.raises(DataError, match=message):
        StoredTokens(str(store))


@pytest.mark.parametrize(
    'pipeline, culprit',
    [
        ([dict(type='mmcae.LoadImage'), dict(type='mmcae.HEDJitter'), CROP], 'HEDJitter'),
        ([dict(type='mmcae.LoadImage', crop=CROP), CROP], 'reduced_decoding'),
        ([dict(type='mmcae.LoadImage'), dict(type='mmcae.OneViewCrop', size=8)], 'no TwoViewCrop'),
    ],
)
def test_pipelines_that_cannot_be_repeated(image_folder, pipeline, culprit):
    with pytest.raises(ConfigError, match=culprit):
        folder_views(image_folder(), pipeline)


@pytest.mark.parametrize('name', ['photo.jpg', 'token.npy'])
def test_other_content_of_a_folder_is_not_overwritten(image_folder, tmp_path, name):
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / name).write_text('mine')
    with pytest.raises(DataError, match=f'{name} is in it'):
        fill(tmp_path / 'mine', Manifest(8, 2, (2, 2), 32, {}), folder_views(image_folder(), views=2), tokenize, 2, 0)
    assert (tmp_path / 'mine' / name).read_text() == 'mine'


def test_targets(store):
    targets = StoredTokens(str(store))
    assert (targets.vocab_size, targets.downsample, targets.in_channels) == (2048, (1, 1), 1)
    view = torch.arange(24.0).view(2, 1, 3, 4)
    index = torch.tensor([[0, 5], [11, 2]])
    assert targets.targets(view, index).tolist() == [[0, 5], [23, 14]]
    targets.check_view((3, 4), (3, 4))
    with pytest.raises(ConfigError, match=r'second view to \(3, 4\)'):
        targets.check_view((2, 2), (3, 4))


def test_keys_of_contents():
    assert content_key(b'a') == content_key(b'a') != content_key(b'b') and content_key(b'').dtype == np.uint64
