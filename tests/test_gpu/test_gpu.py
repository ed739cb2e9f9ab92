"""What only a GPU can show, by `make gpu-check`. MMCAE_TEST_DEVICE=cpu runs the same on the CPU, to try the tests themselves."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from mmcae.apis.fake_training import make_batch
from mmcae.datasets.crops import CropRow
from mmcae.models.device_views import make_views
from mmcae.registry import MODELS, OPTIM_WRAPPERS
from mmcae.utils.configs.loading import load_config

DEVICE = os.environ.get('MMCAE_TEST_DEVICE', 'cuda')
CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(DEVICE == 'cuda' and not torch.cuda.is_available(), reason='needs a GPU')]
DTYPES = ('float32', 'bfloat16') if DEVICE == 'cpu' else ('float32', 'bfloat16', 'float16')


def build():
    """A small CAE that regresses pixels, without dropped paths; its batch."""
    cfg = load_config(CONFIGS / 'digits/cae_pixels_vit-digits.py')
    for part in ('backbone', 'regressor', 'decoder'):
        cfg.model[part].drop_path_rate = 0.0
    torch.manual_seed(0)
    np.random.seed(0)  # masks
    model = MODELS.build(cfg.model).train()
    batch = make_batch(cfg, model, 8)
    batch['inputs'] = [torch.randint(256, view.shape, dtype=torch.uint8) for view in batch['inputs']]
    return model, batch


def train(model, batch, dtype, steps=3, **settings):
    """Losses of a few steps on the device."""
    model = model.to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    kind = 'OptimWrapper' if dtype == 'float32' else 'mmcae.AmpOptimWrapper'
    settings = settings if dtype == 'float32' else dict(settings, dtype=dtype)
    wrapper = OPTIM_WRAPPERS.build(dict(type=kind, optimizer=optimizer, clip_grad=dict(max_norm=3.0), **settings))
    return [float(model.train_step(dict(batch), wrapper)['loss']) for _ in range(steps)]


@pytest.mark.parametrize('dtype', DTYPES)
def test_losses_are_those_of_the_cpu(dtype):
    model, batch = build()
    data = model.data_preprocessor(dict(batch), True)
    expected = sum(value.item() for name, value in model(**data, mode='loss').items() if 'loss' in name)
    losses = train(model, batch, dtype)
    assert losses[0] == pytest.approx(expected, rel=1e-4 if dtype == 'float32' else 2e-2)
    assert losses[-1] < losses[0]


def test_steps_repeat_bit_by_bit():
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert train(*build(), 'float32') == train(*build(), 'float32')
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.skipif(DEVICE == 'cpu', reason='a CPU has no float16')
def test_steps_with_infinite_gradients_are_skipped():
    model, batch = build()
    before = model.backbone.cls_token.detach().clone()
    train(model, batch, 'float16', steps=1, loss_scale=dict(init_scale=2.0**100))
    assert torch.equal(model.backbone.cls_token.cpu(), before)


def test_one_process_of_a_group(tmp_path):
    from torch.nn.parallel import DistributedDataParallel

    torch.distributed.init_process_group(
        'nccl' if DEVICE == 'cuda' else 'gloo', init_method=f'file://{tmp_path}/meeting', rank=0, world_size=1
    )
    try:
        model, batch = build()
        wrapped = DistributedDataParallel(model.to(DEVICE), gradient_as_bucket_view=True)
        losses = wrapped(**model.data_preprocessor(dict(batch), True), mode='loss')
        model.parse_losses(losses)[0].backward()
        assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    finally:
        torch.distributed.destroy_process_group()


def test_roi_align():
    ops = pytest.importorskip('mmcv.ops')
    features, boxes = torch.rand(1, 4, 16, 16), torch.tensor([[0.0, 1.5, 2.5, 9.0, 11.0]])
    layer = ops.RoIAlign(7, spatial_scale=0.5)
    torch.testing.assert_close(layer(features.to(DEVICE), boxes.to(DEVICE)).cpu(), layer(features, boxes), rtol=1e-4, atol=1e-5)


def test_views_made_on_the_device_are_those_of_the_cpu():
    """Crops of several sizes, resized, mirrored and changed in colour; TF32, which training allows, rounds less than a level."""
    shapes, generator = [(40, 60), (75, 33), (200, 224)], torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (sum(3 * h * w for h, w in shapes),), dtype=torch.uint8, generator=generator)
    colours = dict(grey=120.0, jitter_1=3, factor_1=0.7, jitter_2=1, factor_2=1.3, jitter_3=2, factor_3=0.8)
    rows = [CropRow(h, w, 3, h > w, 64, 64, 1, 32, 48, 2, **colours) for h, w in shapes]
    table = torch.stack([row.tensor() for row in rows])
    for ours, expected in zip(make_views(pixels, table, DEVICE), make_views(pixels, table, 'cpu'), strict=True):
        difference = (ours.cpu() - expected).abs()
        assert difference.max() < 3 and difference.mean() < 0.2
