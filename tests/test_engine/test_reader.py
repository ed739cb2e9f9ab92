"""mmengine reads checkpoints by our reader once it is registered, wherever they come from, and resumes logs from our form of them."""

import functools
import http.server
import os
import threading

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import _load_checkpoint

from mmcae.engine import reader
from mmcae.utils.errors import CheckpointError


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f'touch {self.target}',)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    reader.register()


def hub_state():
    hub = MessageHub('test_reader')
    for value in (1.5, np.float64(2.5)):
        hub.update_scalar('loss', value)
    hub.update_info('best', np.float32(3))
    return hub.state_dict()


def test_mmengines_own_checkpoints(tmp_path):
    torch.save(dict(state_dict=dict(w=torch.ones(1)), message_hub=hub_state(), meta=dict(epoch=1)), tmp_path / 'x.pth')
    loaded = _load_checkpoint(str(tmp_path / 'x.pth'), map_location='cpu')
    loss = loaded['message_hub']['log_scalars']['loss']
    assert isinstance(loss, HistoryBuffer) and loss.mean() == 2 and loss.statistics('max') == 2.5


def test_our_checkpoints_are_plain_and_resume(tmp_path):
    meta = dict(array=np.arange(2), path=tmp_path, t=(1, [np.int64(2)]))
    checkpoint = dict(state_dict=dict(w=torch.ones(1)), message_hub=hub_state(), meta=meta)
    reader.make_plain(checkpoint)
    torch.save(checkpoint, tmp_path / 'x.pth')
    content = torch.load(tmp_path / 'x.pth', weights_only=True)
    assert content['meta'] == dict(array=[0, 1], path=str(tmp_path), t=(1, [2])) and content['message_hub']['runtime_info']['best'] == 3
    loaded = _load_checkpoint(str(tmp_path / 'x.pth'))
    hub = MessageHub('test_reader_resumed')
    hub.load_state_dict(loaded['message_hub'])
    assert hub.get_scalar('loss').data[0].tolist() == [1.5, 2.5] and hub.get_info('best') == 3
    hub.update_scalar('loss', 3.5)
    assert hub.get_scalar('loss').mean() == 2.5


LOGS = [3, 'text', dict(history=1), dict(history=[1.0], counts=[], max_length=3), dict(history=[1.0], counts=[1])]


@pytest.mark.parametrize('value', LOGS)
def test_logs_that_are_none_are_left_out(tmp_path, value):
    hub = dict(log_scalars=dict(loss=value), runtime_info={}, resumed_keys={})
    torch.save(dict(message_hub=hub), tmp_path / 'x.pth')
    assert _load_checkpoint(str(tmp_path / 'x.pth'))['message_hub']['log_scalars'] == {}


def test_config_text_is_not_executed(tmp_path):
    """mmengine executes meta['config'] on resuming; it never gets to see it."""
    torch.save(dict(state_dict={}, meta=dict(config='import os', cfg='x = 1', epoch=1)), tmp_path / 'old.pth')
    assert _load_checkpoint(str(tmp_path / 'old.pth'))['meta'] == dict(cfg='x = 1', epoch=1)


def test_files_with_code_are_refused(tmp_path):
    torch.save(dict(meta=Malicious(tmp_path / 'ran')), tmp_path / 'bad.pth')
    with pytest.raises(CheckpointError, match='bad.pth was refused'):
        _load_checkpoint(str(tmp_path / 'bad.pth'))
    assert not (tmp_path / 'ran').exists()


def test_downloads(tmp_path, monkeypatch):
    served = tmp_path / 'served'
    served.mkdir()
    torch.save(dict(state_dict=dict(weight=torch.ones(1))), served / 'good.pth')
    torch.save(Malicious(tmp_path / 'ran'), served / 'bad.pth')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'hub'))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=served)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{server.server_port}'
        assert _load_checkpoint(f'{url}/good.pth')['state_dict']['weight'] == 1
        with pytest.raises(CheckpointError, match='bad.pth was refused'):
            _load_checkpoint(f'{url}/bad.pth')
        server.shutdown()
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('name', ['open-mmlab://resnet50', 'mmcls://vit', 'pavi://x', 'torchvision://no_such_model'])
def test_names_that_cannot_be_fetched(name):
    with pytest.raises(CheckpointError, match=name):
        _load_checkpoint(name)


def test_pretrained_weights_of_other_models_too(tmp_path):
    """What `init_cfg` of any model of mmengine reads."""
    from mmengine.model import PretrainedInit

    torch.save(dict(w=Malicious(tmp_path / 'ran')), tmp_path / 'bad.pth')
    with pytest.raises(CheckpointError, match='bad.pth was refused'):
        PretrainedInit(str(tmp_path / 'bad.pth'))(torch.nn.Linear(1, 1))
    torch.save(dict(state_dict=dict(weight=torch.full((1, 1), 7.0), bias=torch.zeros(1))), tmp_path / 'good.pth')
    module = torch.nn.Linear(1, 1)
    PretrainedInit(str(tmp_path / 'good.pth'))(module)
    assert module.weight.item() == 7
