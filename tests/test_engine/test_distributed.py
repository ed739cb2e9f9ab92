"""The model wrapper for processes without a GPU; two real processes are in tests/test_tools/test_launch_scripts.py."""

import pytest
import torch
from torch import nn

from mmcae.engine import CPUDistributedDataParallel
from mmcae.engine.distributed import ddp_settings


@pytest.fixture
def notes(monkeypatch):
    """What the wrapper logs."""
    logged = []
    monkeypatch.setattr('mmcae.engine.distributed.print_log', lambda text, **_: logged.append(text))
    return logged


@pytest.fixture
def group_of_one(tmp_path):
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/meeting', rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_synchronised_batch_norm_becomes_ordinary_with_a_note(group_of_one, notes):
    norms = [nn.SyncBatchNorm(4), nn.SyncBatchNorm(4)]
    nn.init.normal_(norms[0].weight)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), norms[0], nn.Sequential(norms[1]))
    wrapped = CPUDistributedDataParallel(model, device_ids=[0], broadcast_buffers=False)
    out = wrapped(torch.randn(2, 3, 5, 5))
    out.mean().backward()
    assert wrapped.module[1].weight is norms[0].weight
    assert wrapped.module[0].weight.grad is not None
    assert '2 synchronised batch norms' in notes[0]


def test_other_models_are_wrapped_without_a_note(group_of_one, notes):
    wrapped = CPUDistributedDataParallel(nn.Linear(2, 2))
    wrapped(torch.ones(1, 2)).sum().backward()
    assert not notes


def test_gradients_are_views_of_the_buckets(group_of_one):
    wrapped = CPUDistributedDataParallel(nn.Linear(2, 2), **{k: v for k, v in ddp_settings(None).items() if k != 'type'})
    wrapped(torch.ones(1, 2)).sum().backward()
    weight, bias = (parameter.grad.untyped_storage().data_ptr() for parameter in wrapped.module.parameters())
    assert weight == bias  # one bucket


def test_settings_of_the_wrapper():
    default = dict(type='MMDistributedDataParallel', broadcast_buffers=False, find_unused_parameters=True, gradient_as_bucket_view=True)
    assert ddp_settings(None, find_unused_parameters=True) == default
    own = dict(static_graph=True, gradient_as_bucket_view=False)
    assert ddp_settings(own) == dict(own, type='MMDistributedDataParallel')
    assert ddp_settings(dict(type='MMFullyShardedDataParallel')) == dict(type='MMFullyShardedDataParallel')
