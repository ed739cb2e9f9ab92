"""Images in an S3 store (moto's server) and on a web server: the same as on a disk, in as many requests as it takes."""

import gc
import http.server
import os
import random
import re
import threading
import urllib.request
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.dataset import RepeatDataset
from PIL import Image
from torch.utils.data import DataLoader

from mmcae.apis.embedding import Images
from mmcae.apis.view import View
from mmcae.datasets import ImageFolder, PackedImages, check_data
from mmcae.datasets.seeded_loader import SeededDataset
from mmcae.datasets.sources import packing
from mmcae.datasets.sources.shards import ShardReader, size_of
from mmcae.utils import remote
from mmcae.utils.errors import ConfigError, DataError, StorageError
from mmcae.utils.files import read_file

PIPELINE = [dict(type='mmcae.LoadImage')]


@pytest.fixture
def stored(tmp_path, image_folder):
    """A folder with images in `images` and the same as shards in `packed`."""
    root = image_folder('store/images', classes=('b', 'a'), count=6, size=(40, 40))
    names = [f'{folder}/{path.name}' for folder in ('a', 'b') for path in sorted((root / folder).iterdir())]
    packing.pack(packing.SourceFiles(root, names), tmp_path / 'store/packed', {}, 30000, 0, 0.0)
    return tmp_path / 'store'


@pytest.fixture
def bucket(stored, monkeypatch):
    """The same in a bucket of an S3 server: s3://bucket."""
    pytest.importorskip('s3fs')
    from fsspec.config import conf

    server = pytest.importorskip('moto.server').ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)
    server.start()
    url = 'http://{}:{}'.format(*server.get_host_and_port())
    urllib.request.urlopen(urllib.request.Request(f'{url}/moto-api/reset', method='POST')).close()  # its buckets outlive a server
    for name in [name for name in os.environ if name.startswith(('AWS_', 'FSSPEC_'))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv('AWS_EC2_METADATA_DISABLED', 'true')
    monkeypatch.setenv('HOME', str(stored))  # of nobody who has credentials
    settings = dict(key='name', secret='word', endpoint_url=url)
    monkeypatch.setitem(conf, 's3', settings)
    import fsspec

    store = fsspec.filesystem('s3')
    store.mkdir('bucket')
    store.put(f'{stored}/', 'bucket', recursive=True)
    yield 's3://bucket'
    server.stop()
    store.clear_instance_cache()


class Site(http.server.SimpleHTTPRequestHandler):
    """A folder as a web server shows it.

    `drop` closes every n-th connection without an answer, `ranges` says whether it knows them, and a barrier as `gate` answers when so many
    requests are under way. `answers` has a status and a location for single paths.
    """

    protocol_version = 'HTTP/1.1'
    drop, asked, ranges, gate, answers = 0, 0, True, None, {}

    def do_HEAD(self):
        return self.answer() if self.path in self.answers else super().do_HEAD()

    def answer(self):
        """The status, and where else to look."""
        status, location = self.answers[self.path]
        self.send_response(status)
        self.send_header('Location', location)
        self.send_header('Content-Length', '0')
        self.end_headers()

    def do_GET(self):
        Site.asked += 1
        if self.path in self.answers:
            return self.answer()
        if self.gate is not None:
            self.gate.wait(60)
        if self.drop and Site.asked % self.drop == 0:
            self.close_connection = True
            return self.connection.close()
        part = re.match(r'bytes=(\d+)-(\d+)', self.headers.get('Range', ''))
        if not part or not self.ranges:
            return super().do_GET()
        with open(self.translate_path(self.path), 'rb') as file:
            file.seek(int(part[1]))
            data = file.read(int(part[2]) - int(part[1]) + 1)
        self.send_response(206)
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        return self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def site(stored, monkeypatch):
    """The address of the same on a web server."""
    pytest.importorskip('aiohttp')
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), lambda *args: Site(*args, directory=str(stored)))
    server.handle_error = lambda *_: None  # connections that it has dropped itself
    monkeypatch.setattr(Site, 'asked', 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_address[1]}'
    server.shutdown()
    server.server_close()


def dataset_of(address, kind):
    if kind == 'folder':
        return ImageFolder(f'{address}/images', pipeline=PIPELINE, test_mode=True)
    return PackedImages(f'{address}/packed', pipeline=PIPELINE, test_mode=True)


def assert_same(dataset, stored):
    local = ImageFolder(str(stored / 'images'), pipeline=PIPELINE, test_mode=True)
    assert dataset.sample_names() == local.sample_names() and len(local) == 12
    loader = DataLoader(SeededDataset(dataset), 4, num_workers=2, collate_fn=list)  # whose processes are forked after the store was read
    for ours, theirs in zip(chain(*loader), local, strict=True):
        np.testing.assert_array_equal(ours['img'], theirs['img'])


@pytest.mark.parametrize('kind', ['folder', 'shards'])
def test_s3(bucket, stored, kind):
    dataset = (
        ImageFolder(f'{bucket}/images', pipeline=PIPELINE) if kind == 'folder' else PackedImages(f'{bucket}/packed', pipeline=PIPELINE)
    )
    assert_same(dataset, stored)


UNUSUAL = ('a b.png', 'ü.png', '100%.png', '50%25.png', 'x#1.png', 'q?.png', 'plus+.png', '%2F.png', '[1].png', 'c #1/ä %20.png')


@pytest.mark.parametrize('server', ['site', 'bucket'])
def test_names_are_those_of_a_disk(request, stored, server):
    """Whatever their characters mean in an address: found in the same order, and taken from the same list."""
    folder = stored / 'unusual ä'
    for name in UNUSUAL:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8, 8)).save(folder / name)
    (folder / 'some.txt').write_text('\n'.join(UNUSUAL))
    address = f'{request.getfixturevalue(server)}/unusual ä'
    local, found = (ImageFolder(str(root), pipeline=PIPELINE, test_mode=True) for root in (folder, address))
    assert found.sample_names() == local.sample_names() and len(local) == len(UNUSUAL)
    for dataset in (found, ImageFolder(address, ann_file='some.txt', pipeline=PIPELINE, test_mode=True)):
        assert all(sample['img'].shape == (8, 8, 3) for sample in map(dataset.__getitem__, range(len(UNUSUAL))))


@pytest.mark.parametrize('kind', ['folder', 'shards'])
def test_web_server_that_drops_connections(site, stored, monkeypatch, kind):
    monkeypatch.setattr(Site, 'drop', 3)
    assert_same(dataset_of(site, kind), stored)
    assert Site.asked > Site.drop


@pytest.mark.parametrize('kind, requests', [('folder', 12), ('shards', 2)])
def test_a_batch_is_requested_at_once(site, stored, monkeypatch, kind, requests):
    """The server answers when the requests of all files, or of one part of each shard, are there."""
    dataset, local = dataset_of(site, kind), ImageFolder(str(stored / 'images'), pipeline=PIPELINE, test_mode=True)
    order = [7, 3, 11, 0, 1, 2, 4, 5, 6, 8, 9, 10, 3]
    monkeypatch.setattr(Site, 'gate', threading.Barrier(requests))
    monkeypatch.setattr(Site, 'asked', 0)
    loader = DataLoader(SeededDataset(RepeatDataset(dataset, 2)), batch_sampler=[[*order, 12 + 3]], num_workers=1, collate_fn=list)
    (batch,) = loader
    assert Site.asked == requests and not Site.gate.broken
    for ours, index in zip(batch, [*order, 3], strict=True):
        np.testing.assert_array_equal(ours['img'], local[index]['img'])
    if kind == 'folder':
        (rows,) = DataLoader(Images(dataset, View((40, 40))), batch_sampler=[range(12)], collate_fn=list)
        assert [row for row, _, _ in rows] == list(range(12)) and not Site.gate.broken


def test_a_forked_process_leaves_the_connections_of_its_parent_alone(site, stored):
    """The parent asks once, on the connection of before, and gets its answer."""
    import fsspec

    first, second = (f'{site}/images/a/{path.name}' for path in sorted((stored / 'images/a').iterdir())[:2])
    read_file(first)
    if not (child := os.fork()):
        fsspec.filesystem('http')  # drops the stores of other processes
        gc.collect()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    read_file(second)
    assert Site.asked == 2


def test_what_fails_in_a_batch_is_told_of_its_own_sample(site, stored, monkeypatch):
    """A file that is missing and one that is damaged, in the midst of others; a store that fails for good."""
    (stored / 'images/some.txt').write_text('a/000.jpg\na/none.jpg\nb/000.jpg\n')
    packed = [*PIPELINE, dict(type='mmpretrain.PackInputs', meta_keys=('img_path',))]
    settings = dict(data_root=f'{site}/images', ann_file='some.txt', pipeline=packed)
    for dataset in (ImageFolder(**settings), RepeatDataset(ImageFolder(**settings), 1)):
        first, replaced, third = SeededDataset(dataset).__getitems__([0, 1, 2])
        assert [sample['data_samples'].img_path for sample in (first, third)] == [f'{site}/images/{folder}/000.jpg' for folder in 'ab']
        assert replaced['data_samples'].bad_files[0][0] == f'{site}/images/a/none.jpg'
    strict = SeededDataset(ImageFolder(**settings, test_mode=True))
    with pytest.raises(DataError, match=f'{site}/images/a/none.jpg is listed in the data set but does not exist'):
        strict.__getitems__([0, 1, 2])
    monkeypatch.setenv('MMCAE_RETRY_SECONDS', '0.1')
    monkeypatch.setattr(Site, 'drop', 1)
    with pytest.raises(StorageError, match=f'{site}/images/b/000.jpg cannot be read: ServerDisconnectedError.*, for [0-9]+ s'):
        strict.__getitems__([2, 0])


NOWHERE = 'http://127.0.0.1:1/'


@pytest.mark.parametrize(
    'status, kind, words',
    [
        (401, StorageError, 'cannot be read: 401.*Look at the credentials'),
        (403, StorageError, 'cannot be read: 403.*Look at the credentials'),
        (416, StorageError, 'cannot be read: 416.*look at the address'),
        (410, FileNotFoundError, 'No such file'),
        (429, StorageError, 'cannot be read: ClientResponseError: 429.*, for [0-9]+ s'),
        (503, StorageError, 'cannot be read: ClientResponseError: 503.*, for [0-9]+ s'),
        (302, StorageError, 'cannot be read: ClientConnectorError: Cannot connect.*, for [0-9]+ s'),
    ],
)
def test_what_a_web_server_answers(site, monkeypatch, status, kind, words):
    """What it refuses is told at once; what may pass is tried again. So it is with the content of a file and with its size."""
    monkeypatch.setenv('MMCAE_RETRY_SECONDS', '0.1')
    monkeypatch.setattr(Site, 'answers', {'/images/a/000.jpg': (status, NOWHERE)})
    path = f'{site}/images/a/000.jpg'
    with pytest.raises(kind, match=words):
        read_file(path)
    if kind is FileNotFoundError:
        assert size_of(path) is None
    else:
        with pytest.raises(kind, match=words):
            size_of(path)
    assert Site.asked == 2 if status in (401, 403, 416) else Site.asked > 2 or status in (410, 302)


def test_a_folder_that_cannot_be_listed_is_not_left_out(site, monkeypatch):
    monkeypatch.setenv('MMCAE_RETRY_SECONDS', '0.1')
    monkeypatch.setattr(Site, 'answers', {'/images/b/': (302, NOWHERE), '/images/b': (302, NOWHERE)})
    with pytest.raises(StorageError, match=f'{site}/images cannot be read: ClientConnectorError'):
        ImageFolder(f'{site}/images')


def test_a_list_needs_no_folders_of_a_web_server(site, stored, monkeypatch):
    (stored / 'images/some.txt').write_text('a/000.jpg\n')
    monkeypatch.setattr(Site, 'answers', {'/images': (403, ''), '/images/': (403, '')})
    settings = dict(data_root=f'{site}/images', ann_file='some.txt')
    check_data(dict(train_dataloader=dict(dataset=settings)), ('train',))
    assert ImageFolder(**settings, pipeline=PIPELINE)[0]['img'].shape == (40, 40, 3)
    with pytest.raises(StorageError, match='credentials'):
        ImageFolder(f'{site}/images')
    for name, words in (('none.txt', 'does not exist, but train_dataloader'), ('some.txt', '')):
        monkeypatch.setattr(Site, 'answers', {} if words else {'/images/some.txt': (403, '')})
        with pytest.raises(DataError, match=words or '403'):
            check_data(dict(train_dataloader=dict(dataset=settings | dict(ann_file=name))), ('train',))


@pytest.mark.parametrize('address', ['http://', 'http://127.0.0.1:99999/x', 'http://[::1/x'])
def test_what_is_no_address_is_refused_at_once(address):
    pytest.importorskip('aiohttp')
    with pytest.raises(ConfigError, match='cannot be read: .*Look at the address'):
        read_file(address)


def test_web_server_without_ranges(site, monkeypatch):
    reader = ShardReader(f'{site}/packed')
    monkeypatch.setattr(Site, 'ranges', False)
    with pytest.raises(StorageError, match='shard-000000.tar: its server sends the whole file'):
        reader.read(0)
    with remote.requested([reader.part(1), reader.part(3)]):
        with pytest.raises(StorageError, match='shard-000000.tar: its server sends the whole file'):
            reader.read(3)


def test_parts_of_a_shard_that_lie_close_together_are_one_request(bucket, monkeypatch):
    """Up to a length; what is asked for twice is read once."""
    reader = ShardReader(f'{bucket}/packed')
    assert (len(reader.names), len(reader)) == (2, 12)
    whole = [reader.read(i) for i in range(12)]
    for gap, block, count in ((4096, 2**20, [2]), (0, 2**20, [12]), (4096, int(reader.index.size[:6].sum()) // 2, range(3, 12))):
        monkeypatch.setattr(remote, 'GAP', gap)
        monkeypatch.setattr(remote, 'BLOCK', block)
        with remote.requested([reader.part(i) for i in [*range(12), 5]]):
            made = [request for some in remote._requests.get().values() for request in some]
            assert [reader.read(i) for i in (5, *reversed(range(12)))] == [whole[5], *reversed(whole)]
        assert len(made) in count


def test_waits_before_retries_are_no_random_numbers_of_an_image(bucket, stored):
    """In each of botocore's ways to retry."""
    assert read_file(f'{bucket}/packed/pack.json') == (stored / 'packed/pack.json').read_bytes()
    from botocore.retries.standard import ExponentialBackoff
    from botocore.retryhandler import delay_exponential

    state = random.getstate()
    assert delay_exponential('rand', 2, 3) != delay_exponential('rand', 2, 3)
    assert ExponentialBackoff().delay_amount(SimpleNamespace(attempt_number=3)) > 0
    assert random.getstate() == state


def test_what_is_wrong_is_named_at_once(bucket, monkeypatch):
    from fsspec.config import conf

    with pytest.raises(DataError, match='s3://other does not exist, but train_dataloader reads it'):
        check_data(dict(train_dataloader=dict(dataset=dict(data_root='s3://other'))), ('train',))
    with pytest.raises(DataError, match='s3://other does not exist: set data_root'):
        ImageFolder('s3://other')
    with pytest.raises(ConfigError, match='s4://bucket/file cannot be read: Protocol not known: s4; among those that fsspec knows are s3,'):
        read_file('s4://bucket/file')
    monkeypatch.setitem(conf, 's3', dict(endpoint_url=conf['s3']['endpoint_url']))
    with pytest.raises(
        StorageError, match='s3://bucket/images/a/000.jpg cannot be read: Unable to locate credentials. Look at the credentials'
    ):
        read_file(f'{bucket}/images/a/000.jpg')
