"""A store that dies while a training reads from it and is started again: nothing is lost, and nothing is drawn anew."""

import os
import signal
import subprocess
import sys

import pytest
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

S3 = """
import sys
import time
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer

port, folder = int(sys.argv[1]), Path(sys.argv[2])
filled = ThreadedMotoServer('127.0.0.1', 0, verbose=False)  # shows the same buckets, which are this process's
filled.start()
keys = dict(aws_access_key_id='name', aws_secret_access_key='word', region_name='us-east-1')
client = boto3.client('s3', endpoint_url='http://{}:{}'.format(*filled.get_host_and_port()), **keys)
client.create_bucket(Bucket='bucket')
for path in folder.rglob('*.*'):
    client.upload_file(str(path), 'bucket', path.relative_to(folder).as_posix())
ThreadedMotoServer('127.0.0.1', port, verbose=False).start()
print('ready', flush=True)
time.sleep(600)
"""
WEB = """
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

server = ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), partial(SimpleHTTPRequestHandler, directory=sys.argv[2]))
print('ready', flush=True)
server.serve_forever()
"""


@HOOKS.register_module()
class KillAt(Hook):
    """Kills another process in an iteration."""

    def __init__(self, iteration, process):
        self.iteration, self.process = iteration, process

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == self.iteration:
            os.kill(self.process, signal.SIGKILL)


@pytest.fixture(params=['s3', 'http'])
def store(request, image_folder, free_port, monkeypatch):
    """The images of the tiny config in a store: its address, and what starts its server anew and returns the number of its process."""
    from fsspec.config import conf

    pytest.importorskip('s3fs')
    folder, port, servers = image_folder('images', count=6, size=(40, 40)), free_port(), []
    monkeypatch.setitem(conf, 's3', dict(key='name', secret='word', endpoint_url=f'http://127.0.0.1:{port}'))
    monkeypatch.setenv('AWS_EC2_METADATA_DISABLED', 'true')

    def serve():
        command = [sys.executable, '-c', S3 if request.param == 's3' else WEB, str(port), str(folder)]
        servers.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True))
        assert servers[-1].stdout.readline() == 'ready\n'
        return servers[-1].pid

    yield 's3://bucket' if request.param == 's3' else f'http://127.0.0.1:{port}', serve
    for server in servers:
        server.kill()
        server.wait()


def read_from(variant, address, server=None):
    """The tiny config with its images there; in the second epoch the server dies, so that the third has to wait for it."""
    hooks = dict(kill=dict(type='KillAt', iteration=8, process=server)) if server else {}
    pipeline = '{{_base_.train_dataloader.dataset.pipeline}}'
    dataset = f"dict(_delete_=True, type='mmcae.ImageFolder', data_root='{address}', pipeline={pipeline})"
    return variant(f'train_dataloader = dict(num_workers=2, dataset={dataset})\nrandomness = dict(seed=5)\ndefault_hooks = {hooks}\n')


def test_a_store_that_is_started_again(store, start, variant, read, differences, tmp_path):
    """The result is that of a folder, to the last bit."""
    address, serve = store
    local = start(config=read_from(variant, tmp_path / 'images'), work_dir=tmp_path / 'local')
    training = start(config=read_from(variant, address, serve()))
    training.wait_for('trying again for')
    serve()
    assert [local.wait(), training.wait()] == [0, 0], training.text
    assert differences(read(tmp_path / 'local/epoch_3.pth'), read(tmp_path / 'run/epoch_3.pth')) == []


@pytest.mark.parametrize('store', ['http'], indirect=True)
def test_a_store_that_stays_away(store, start, variant, monkeypatch):
    monkeypatch.setenv('MMCAE_RETRY_SECONDS', '1')
    address, serve = store
    training = start(config=read_from(variant, address, serve()))
    assert training.wait() == 2 and 'Traceback' not in training.text, training.text
    (line,) = [line for line in training.text.splitlines() if line.startswith('error: ')]
    assert f'{address}/' in line and 'Look at the store, its address and the network' in line and '--resume' in line
