"""Images in an S3 store (moto's server) and on a web server: the same as on a disk, in as many requests as it takes."""

import http.server
import os
import re
import threading
import urllib.request

import numpy as np
import pytest
from torch.utils.data import DataLoader

from mmcae.datasets import ImageFolder, PackedImages, check_data
from mmcae.datasets.sources import packing
from mmcae.datasets.sources.shards import ShardReader
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
    """A folder as a web server shows it; `drop` every n-th connection without an answer, `ranges` as far as it knows them."""

    protocol_version = 'HTTP/1.1'
    drop, asked, ranges = 0, 0, True

    def do_GET(self):
        Site.asked += 1
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
    loader = DataLoader(dataset, batch_size=None, num_workers=2)  # whose processes are forked after the store was read
    for ours, theirs in zip(loader, local, strict=True):
        np.testing.assert_array_equal(ours['img'], theirs['img'])


@pytest.mark.parametrize('kind', ['folder', 'shards'])
def test_s3(bucket, stored, kind):
    dataset = (
        ImageFolder(f'{bucket}/images', pipeline=PIPELINE) if kind == 'folder' else PackedImages(f'{bucket}/packed', pipeline=PIPELINE)
    )
    assert_same(dataset, stored)


@pytest.mark.parametrize('kind', ['folder', 'shards'])
def test_web_server_that_drops_connections(site, stored, monkeypatch, kind):
    monkeypatch.setattr(Site, 'drop', 3)
    assert_same(dataset_of(site, kind), stored)
    assert Site.asked > 12 * 4 / 3


def test_web_server_without_ranges(site, monkeypatch):
    reader = ShardReader(f'{site}/packed')
    monkeypatch.setattr(Site, 'ranges', False)
    with pytest.raises(StorageError, match='shard-000000.tar: its server sends the whole file'):
        reader.read(0)


@pytest.mark.parametrize('order', ['forward', 'backward'])
def test_requests_for_shards(bucket, monkeypatch, order):
    """Where images are read one after the other a request brings those behind as well; where they are not, just the one."""
    reader = ShardReader(f'{bucket}/packed')
    assert (len(reader.names), len(reader)) == (2, 12)
    requests, read = [], remote.read
    monkeypatch.setattr(remote, 'read', lambda *args: requests.append(args) or read(*args))
    for i in range(12) if order == 'forward' else reversed(range(12)):
        reader.read(i)
    if order == 'forward':
        assert len(requests) == 4  # for each shard the first image, and the others
    else:
        assert sum(end - begin for _, begin, end in requests) == sum(reader.index.size) and len(requests) == 12


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
