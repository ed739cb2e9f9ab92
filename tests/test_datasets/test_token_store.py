"""Stored views: drawn as the pipeline draws them, shown again to the pixel, tied to their files."""

import json
import random

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from PIL import Image

from mmcae.datasets import ImageFolder
from mmcae.datasets.store_tokens import RandomViews, fill
from mmcae.datasets.token_store import Manifest, TokenStore, checksum
from mmcae.datasets.transforms import LoadImage, StoredViews, TwoViewCrop
from mmcae.models import StoredTokens
from mmcae.utils.errors import ConfigError, DataError

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
            box, flip, _ = transform.store.view(row, str(path), number)
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
        patch.setattr('mmcae.datasets.store_tokens.SAVE_EVERY', -1)
        with pytest.raises(KeyboardInterrupt):
            fill(tmp_path / 'parts', manifest(), folder_views(root, views=2), interrupted, 2, 0)
    with pytest.raises(DataError, match='tokens of 4 of 8 images'):
        TokenStore(tmp_path / 'parts')
    fill(tmp_path / 'parts', manifest(), folder_views(root, views=2), tokenize, 2, 0)
    names = sorted(path.name for path in (tmp_path / 'whole').iterdir())
    assert names == ['.lock', 'box.npy', 'flip.npy', 'name.npy', 'store.json', 'token.npy', 'unreadable.tsv']
    assert all((tmp_path / 'whole' / name).read_bytes() == (tmp_path / 'parts' / name).read_bytes() for name in names)
    assert json.loads((tmp_path / 'whole/store.json').read_text())['unreadable'] == 1
    assert (tmp_path / 'whole/unreadable.tsv').read_text().startswith(f'{root}/cat/001.png\t')
    with pytest.raises(DataError, match='could not be read when'):
        TokenStore(tmp_path / 'whole').view(1, 'anywhere/001.png', 0)
    with pytest.raises(DataError, match='views, settings changed since'):
        fill(tmp_path / 'whole', Manifest(8, 3, (2, 2), 2048, dict(a=2)), folder_views(root), tokenize, 2, 0)


def test_a_store_of_other_files_is_refused(store):
    opened = TokenStore(store)
    opened.view(0, '/moved/to/000.jpg', 2)
    for row, path in ((0, '/x/001.png'), (8, '/x/000.jpg')):
        with pytest.raises(ConfigError, match='other files, or another order'):
            opened.view(row, path, 0)


def test_an_image_that_changed(store):
    with pytest.raises(DataError, match='another size'):
        StoredViews(str(store), 24)(dict(img=np.zeros((4, 4, 3), np.uint8), img_path='000.jpg', sample_idx=0))


@pytest.mark.parametrize(
    'damage, message',
    [
        (
            lambda folder: (folder / 'store.json').unlink(),
            'There is no .*store.json: make it with tools/dataset_converters/store_tokens.py',
        ),
        (lambda folder: (folder / 'store.json').write_text('{'), 'store.json cannot be read'),
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


def test_names_without_their_folders():
    assert checksum('/a/b.jpg') == checksum('c/b.jpg') != checksum('/a/c.jpg')
