"""How often the processes of a large group exchange gradients, counted in one process of a group that is not there."""

from pathlib import Path

import pytest
import torch
from torch.testing._internal.distributed.fake_pg import FakeStore

from mmcae.apis.fake_training import make_batch
from mmcae.engine.distributed import ddp_settings
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
