"""How often the processes of a large group exchange gradients and parameters, counted in one process of a group that is not there."""

import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.distributed import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from mmcae.apis.fake_training import make_batch
from mmcae.engine.distributed import ddp_settings
from mmcae.engine.fsdp2 import shard
from mmcae.registry import MODEL_WRAPPERS, MODELS, OPTIM_WRAPPERS
from mmcae.utils.configs.loading import load_config

CONFIG = Path(__file__).resolve().parents[2] / 'configs/digits/cae_pixels_vit-digits.py'
BUCKET = 0.5  # MiB; all gradients take 2.7


@pytest.fixture
def group_of_64():
    torch.distributed.init_process_group('fake', rank=0, world_size=64, store=FakeStore())
    yield
    torch.distributed.destroy_process_group()


def exchanged(accumulative_counts, steps):
    """Numbers of gradients that each step exchanges, one for each all-reduce."""
    cfg = load_config(CONFIG)
    model = MODELS.build(cfg.model).train()
    batch = make_batch(cfg, model, 2)
    settings = ddp_settings(dict(type='mmcae.CPUDistributedDataParallel', bucket_cap_mb=BUCKET))
    wrapped = MODEL_WRAPPERS.build(settings, default_args=dict(module=model))
    found = []

    def count(state, bucket: torch.distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
        found[-1].append(bucket.buffer().numel())
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    wrapped.register_comm_hook(None, count)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    wrapper = OPTIM_WRAPPERS.build(
        dict(type='mmcae.AmpOptimWrapper', dtype='bfloat16', optimizer=optimizer, accumulative_counts=accumulative_counts)
    )
    for _ in range(steps):
        found.append([])
        wrapped.train_step(dict(batch), wrapper)
    return found, sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def test_each_gradient_is_exchanged_once_per_step(group_of_64):
    found, gradients = exchanged(1, 3)
    assert [sum(step) for step in found] == [gradients] * 3
    assert len(found[-1]) <= 2.7 / BUCKET + 2  # buckets, not parameters


def test_accumulated_gradients_are_exchanged_once_per_update(group_of_64):
    found, gradients = exchanged(2, 4)
    assert [sum(step) for step in found] == [0, gradients, 0, gradients]


class Exchanges(TorchDispatchMode):
    """Counts the collectives of FSDP2, and how many numbers each gives to this process or takes from it."""

    def __init__(self):
        super().__init__()
        self.calls, self.numbers, self.dtypes = Counter(), Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == 'c10d':
            name = func.overloadpacket.__name__.strip('_').removesuffix('_base')
            whole = args[0] if name == 'allgather' else args[1]
            self.calls[name] += 1
            self.numbers[name] += whole.numel()
            self.dtypes[name, whole.dtype] += 1
        return func(*args, **(kwargs or {}))


def sharded_steps(steps, accumulative_counts=1, **settings):
    cfg = load_config(CONFIG)
    model = MODELS.build(cfg.model).train()
    batch = make_batch(cfg, model, 2)
    blocks = [len(part.blocks) for part in (model.backbone, model.regressor, model.decoder)]
    shapes = [parameter.shape for parameter in model.parameters() if parameter.requires_grad]
    numbers = sum(math.ceil(shape[0] / 64) * 64 * math.prod(shape[1:]) for shape in shapes)  # rows are padded
    shard(model, init_device_mesh('cpu', (64,)), **settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    wrapper = OPTIM_WRAPPERS.build(
        dict(type='mmcae.AmpOptimWrapper', dtype='bfloat16', optimizer=optimizer, accumulative_counts=accumulative_counts)
    )
    found = []
    for _ in range(steps):
        with Exchanges() as exchanges:
            model.train_step(dict(batch), wrapper)
        found.append(exchanges)
    return found, blocks, numbers


@pytest.mark.parametrize('reshard_after_forward', [True, False])
def test_fsdp2_gathers_each_block_when_it_is_computed(group_of_64, reshard_after_forward):
    """The encoder twice in the forward pass, for the alignment too; all blocks once more in the backward pass, nothing beside them."""
    found, (encoder, regressor, decoder), numbers = sharded_steps(2, reshard_after_forward=reshard_after_forward)
    units = 1 + encoder + regressor + decoder
    gathered = units + encoder + units - 1 if reshard_after_forward else units
    for exchanges in found:
        assert exchanges.calls == dict(allgather=gathered, reduce_scatter=units)
        assert exchanges.numbers['reduce_scatter'] == numbers


def test_fsdp2_in_bfloat16(group_of_64):
    """Blocks are gathered in it; gradients are summed in float32."""
    (exchanges,), blocks, _ = sharded_steps(1, reshard_after_forward=False, param_dtype=torch.bfloat16)
    assert exchanges.dtypes == {
        ('allgather', torch.bfloat16): sum(blocks),
        ('allgather', torch.float32): 1,
        ('reduce_scatter', torch.float32): 1 + sum(blocks),
    }


def test_fsdp2_sums_accumulated_gradients_once_per_update(group_of_64):
    found, blocks, _ = sharded_steps(4, accumulative_counts=2)
    assert [exchanges.calls['reduce_scatter'] for exchanges in found] == [0, 1 + sum(blocks)] * 2
