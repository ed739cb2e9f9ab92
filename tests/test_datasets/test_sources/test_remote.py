"""Images in a store, read by fsspec from a real server (FTP), one that fails or stalls included."""

import random
import sys
import threading
import time
from types import ModuleType

import fsspec
import numpy as np
import pytest
from PIL import Image
from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.servers import ThreadedFTPServer

from mmcae.datasets import ImageFolder, PackedImages, check_data
from mmcae.datasets.sources import packing
from mmcae.datasets.sources.shards import ShardReader
from mmcae.utils import remote
from mmcae.utils.errors import ConfigError, DataError, StorageError
from mmcae.utils.files import read_file


@pytest.fixture
def server(tmp_path):
    """The folder of a server, its address, and `faults`: `every` n-th file is refused, or answered after `stall` seconds."""

    class Handler(FTPHandler):
        faults, asked = dict(every=0, stall=0), 0

        def ftp_RETR(self, file):
            Handler.asked += 1
            if self.faults['every'] and Handler.asked % self.faults['every'] == 0:
                time.sleep(self.faults['stall'])
                self.respond('451 The store is busy.')
                return None
            return super().ftp_RETR(file)

    folder = tmp_path / 'store'
    folder.mkdir()
    Handler.authorizer = DummyAuthorizer()
    Handler.authorizer.add_anonymous(str(folder))
    Handler.banner = 'ready'
    running = ThreadedFTPServer(('127.0.0.1', 0), Handler)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    running.root, running.faults = folder, Handler.faults
    running.url = f'ftp://127.0.0.1:{running.address[1]}'
    yield running
    running.close_all()
    thread.join(5)


@pytest.fixture
def images(server, image_folder):
    """Images on the server, below a folder `images`: its local path."""
    root = image_folder('store/images', classes=('b', 'a/c', 'a-b'), count=2, size=(40, 40))
    Image.new('RGB', (9, 9)).save(root / 'first.png')
    Image.new('RGB', (9, 9)).save(root / '.hidden.png')
    Image.new('RGB', (9, 9)).save(root / 'what? #1 %20.png')
    (root / 'notes.txt').write_text('no image')
    return root


PIPELINE = [dict(type='mmcae.LoadImage')]


def pixels(dataset):
    return [sample['img'] for sample in map(dataset.__getitem__, range(len(dataset)))]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for a, b in zip(pixels(ours), pixels(theirs), strict=True):
        np.testing.assert_array_equal(a, b)


def test_folders_lists_and_shards_are_those_of_a_disk(server, images):
    """Each in the same order; the server refuses every third request for a file."""
    local = ImageFolder(str(images), pipeline=PIPELINE, test_mode=True)
    names = [name.decode() for name in local.sample_names()]
    (images / 'some.txt').write_text(f'{names[2]}\n{server.url}/images/{names[0]}\n')
    packing.pack(packing.SourceFiles(images, names), server.root / 'packed', {}, 4000, 0, 0.0)
    server.faults['every'] = 3
    folder = ImageFolder(f'{server.url}/images', pipeline=PIPELINE, test_mode=True)
    assert folder.sample_names() == local.sample_names()
    assert_same(folder, local)
    listed = ImageFolder(f'{server.url}/images', ann_file='some.txt', pipeline=PIPELINE, test_mode=True)
    np.testing.assert_array_equal(pixels(listed)[0], pixels(local)[2])
    np.testing.assert_array_equal(pixels(listed)[1], pixels(local)[0])
    shards = PackedImages(f'{server.url}/packed', pipeline=PIPELINE, test_mode=True)
    assert shards.sample_names() == local.sample_names() and len(shards.reader.names) > 1
    assert_same(shards, local)


def test_what_is_missing_is_named(server, images):
    for path in (f'{server.url}/images/b/none.png', f'{server.url}/none'):
        with pytest.raises(DataError, match=f'{path} does not exist'):
            check_data(dict(train_dataloader=dict(dataset=dict(data_root=path))), ('train',))
    (images / 'absent.txt').write_text('first.png\nb/none.png\n')
    dataset = ImageFolder(f'{server.url}/images', ann_file='absent.txt', pipeline=PIPELINE, test_mode=True)
    with pytest.raises(DataError, match=f'{server.url}/images/b/none.png is listed in the data set but does not exist'):
        dataset[1]
    with pytest.raises(DataError, match='holds no packed images'):
        PackedImages(f'{server.url}/images')
    with pytest.raises(ConfigError, match='nowhere://bucket'):
        read_file('nowhere://bucket/file')


def test_a_server_that_stalls_or_fails_for_good(server, images, monkeypatch):
    monkeypatch.setattr(remote, 'STALLED', 1)
    server.faults.update(every=2, stall=3)
    expected = (images / 'first.png').read_bytes()
    assert [read_file(f'{server.url}/images/first.png') for _ in range(2)] == [expected] * 2
    monkeypatch.setattr(remote, 'STALLED', 30)
    monkeypatch.setenv('MMCAE_RETRY_SECONDS', '0.2')
    server.faults.update(every=1, stall=0)
    with pytest.raises(StorageError, match=f'{server.url}/images/first.png cannot be read: .*The store is busy'):
        read_file(f'{server.url}/images/first.png')


@pytest.mark.parametrize('kind', ['folder', 'shards'])
def test_pretraining(server, images, run_tool, repository, tmp_path, kind):
    """With loader workers, from a server that refuses every fifth request."""
    root, changes = 'images', []
    if kind == 'shards':
        names = [path.relative_to(images).as_posix() for path in sorted(images.rglob('*.jpg'))]
        packing.pack(packing.SourceFiles(images, names), server.root / 'packed', {}, 4000, 0, 0.0)
        root, changes = 'packed', ['train_dataloader.dataset.type=mmcae.PackedImages']
    server.faults['every'] = 5
    config = tmp_path / 'config.py'
    config.write_text(f"""_base_ = '{repository}/configs/custom/cae_vit-small_folder.py'
model = dict(
    backbone=dict(arch=dict(_delete_=True, embed_dims=32, num_layers=1, num_heads=2)),
    regressor=dict(in_dims=32, embed_dims=32, num_heads=2, num_layers=1),
    decoder=dict(embed_dims=32, num_heads=2, num_layers=1),
)
""")
    settings = (f'data_root={server.url}/{root}', 'image_size=32', 'patch_size=8', 'token_size=8', 'batch_size=2', 'num_workers=2')
    code, output = run_tool('tools/train.py', config, '--work-dir', tmp_path / 'run', '--cfg-options', *settings, 'max_epochs=1', *changes)
    assert code == 0 and 'loss' in output and (tmp_path / 'run/epoch_1.pth').exists(), output


def test_a_part_that_comes_short_is_asked_for_again(image_folder, tmp_path, monkeypatch):
    """As by a proxy that ends a connection early. It is no damage of the shard."""
    root = image_folder('images', count=2)
    names = sorted(str(path.relative_to(root)) for path in root.rglob('*.*'))
    packing.pack(packing.SourceFiles(root, names), tmp_path / 'packed', {}, 10**6, 0, 0.0)
    store = fsspec.filesystem('memory')
    for file in (tmp_path / 'packed').iterdir():
        store.pipe_file(f'/packed/{file.name}', file.read_bytes())
    reader, whole, asked = ShardReader('memory://packed'), type(store).cat_file, []

    def cut(self, path, start=None, end=None, **settings):
        data = whole(self, path, start, end, **settings)
        asked.append(path)
        return data[: len(data) // 2] if len(asked) == 1 else data

    monkeypatch.setattr(type(store), 'cat_file', cut)
    assert reader.read(3) == ShardReader(tmp_path / 'packed').read(3) and len(asked) == 2
    monkeypatch.setenv('MMCAE_RETRY_SECONDS', '0')
    monkeypatch.setattr(type(store), 'cat_file', lambda *arguments, **settings: b'cut')
    with pytest.raises(StorageError, match='shard-000000.tar.* cannot be read: EOFError: 3 of [0-9,]+ bytes have come'):
        reader.read(3)


def test_packages_of_stores_draw_from_numbers_of_their_own(monkeypatch):
    """Whatever else they need of the module random is there."""
    for name in ('botocore.made_up', 'other.made_up'):
        module = ModuleType(name)
        module.random = random
        monkeypatch.setitem(sys.modules, name, module)
    remote.separate_random_numbers()
    assert sys.modules['other.made_up'].random is random
    theirs, state = sys.modules['botocore.made_up'].random, random.getstate()
    assert 0 <= theirs.random() < 1 and theirs.choice('a') == 'a' and 0 <= theirs.SystemRandom().random() < 1
    assert random.getstate() == state
