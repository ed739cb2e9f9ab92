"""What only a GPU can show, by `make gpu-check`. MMCAE_TEST_DEVICE=cpu runs the same on the CPU, to try the tests themselves."""

import os
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from reference import golden
from reference.examples import CAE, CAE_V2
from reference.ours import backbone_and_pyramid, model_of

from mmcae.apis.fake_training import build_model, make_batch
from mmcae.datasets.crops import CropRow
from mmcae.engine import CompileParts
from mmcae.models import DALLETokenizer
from mmcae.models.device_views import make_views
from mmcae.registry import MODELS, OPTIM_WRAPPERS
from mmcae.utils.configs.loading import load_config

DEVICE = os.environ.get('MMCAE_TEST_DEVICE', 'cuda')
CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(DEVICE == 'cuda' and not torch.cuda.is_available(), reason='needs a GPU')]
DTYPES = ('float32', 'bfloat16') if DEVICE == 'cpu' else ('float32', 'bfloat16', 'float16')
COMPILER = dict(backend='aot_eager') if DEVICE == 'cpu' else {}  # a compiler of C++ takes minutes
GOLDEN = (
    *CAE,
    *CAE_V2,
    'segmentation',
    'detection',
    'dalle',
    *golden.present('cae_tiny.pt', 'cae_tiny_small_decoder.pt', 'caev2/caev2_tiny.pt', 'caev2/caev2_tiny_small_decoder.pt'),
    *golden.present('cae_downstream_tiny.pt', 'cae_detection_tiny.pt', 'dalle_encoder_tiny.pt'),
)
COMPILED = GOLDEN if DEVICE == 'cuda' else ('cae', 'cae v2')
DIGITS = sorted(path.stem for path in (CONFIGS / 'digits').glob('*.py') if path.stem != 'mae_vit-digits')  # mmpretrain's own
FULL = [  # the kinds of recipes in full size, where there is a GPU
    'cae/cae_vit-base-p16_32xb64-amp-coslr-300e_in1k',
    'cae_v2/cae_v2_vit-base-p16_8xb256-amp-coslr-300e_in1k',
    'finetune/finetune_vit-base-p16_cae_32xb128-amp-100e_in1k',
    'upernet/upernet_vit-base-p16_cae-300e_8xb2-amp-160k_ade20k-512x512',
    'mask_rcnn/mask-rcnn_vitdet-base-p16_cae_32xb2-amp-lsj-1024-100e_coco',
]


def build(drop_path_rate=0.0):
    """A small CAE that regresses pixels; its batch."""
    cfg = load_config(CONFIGS / 'digits/cae_pixels_vit-digits.py')
    for part in ('backbone', 'regressor', 'decoder'):
        cfg.model[part].drop_path_rate = drop_path_rate
    if not drop_path_rate:
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


def outputs_of(name, tmp_path, dtype, compiled):
    """(found, expected) for a golden file or an example of the reference."""
    reference = golden.load(name)
    lowered = torch.autocast(DEVICE, getattr(torch, dtype)) if dtype != 'float32' else nullcontext()
    with lowered:
        if 'logits' in reference and 'input' in reference:
            torch.save(reference['state_dict'], tmp_path / 'encoder.pth')
            tokenizer = DALLETokenizer(tmp_path / 'encoder.pth', dtype=dtype).to(DEVICE)
            if compiled:
                CompileParts(['embed'], **COMPILER).compile(tokenizer)
            found = tokenizer.logits(tokenizer.embed(reference['input'].to(DEVICE)))
            return [(found, reference['logits'].flatten(2).transpose(1, 2))]
        if 'mask' in reference:
            model = model_of(reference).to(DEVICE)
            last = 'predictor' if 'prediction_raster' in reference else 'decoder'
            if compiled:
                CompileParts(('backbone.encode', 'regressor', last), **COMPILER).compile(model)
            out = model.predict(reference['image'].float().to(DEVICE), reference['mask'].to(DEVICE))
            if last == 'predictor':
                return [(out['prediction'], reference['prediction_raster'])]
            return [(out['logits'].flatten(0, 1), reference['logits']), (out['latent_pred'], reference['latent_predict'])]
        size = reference['config']['img_size']
        backbone, pyramid = (part.to(DEVICE) for part in backbone_and_pyramid(reference, size if isinstance(size, int) else tuple(size)))
        if compiled:
            CompileParts(['forward'], **COMPILER).compile(backbone)
        if 'inputs' not in reference:
            return list(zip(pyramid(backbone(reference['input'].to(DEVICE))), reference['outputs'], strict=True))
        maps = [pyramid(backbone(image.float().to(DEVICE))) for image in reference['inputs']]
        return [pair for found, expected in zip(maps, reference['outputs'], strict=True) for pair in zip(found, expected, strict=True)]


@pytest.mark.parametrize(
    ('name', 'kind'), [*((name, dtype) for name in GOLDEN for dtype in DTYPES), *((name, 'compiled') for name in COMPILED)]
)
@torch.no_grad()
def test_golden_files(name, kind, tmp_path):
    """Relative to the largest value; ten bits of mantissa (TF32 of convolutions, float16) or seven (bfloat16) through all blocks."""
    torch._dynamo.reset()
    pairs = outputs_of(name, tmp_path, 'float32' if kind == 'compiled' else kind, kind == 'compiled')
    tolerance = 0.04 if kind == 'bfloat16' else 5e-3 if DEVICE == 'cuda' else 1e-5
    for found, expected in pairs:
        expected = expected.double()
        torch.testing.assert_close(found.double().cpu(), expected, rtol=0, atol=tolerance * float(expected.abs().max()))


def objects_of(count, size):
    """Images with an object each, as mmdet collates them."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.bbox import HorizontalBoxes
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    masks = np.zeros((1, *size), np.uint8)
    masks[:, size[0] // 4 : size[0] // 2, size[1] // 4 : size[1] // 2] = 1
    box = HorizontalBoxes([[size[1] // 4, size[0] // 4, size[1] // 2, size[0] // 2]])
    samples = []
    for _ in range(count):
        objects = InstanceData(bboxes=box.clone(), labels=torch.zeros(1, dtype=torch.int64), masks=BitmapMasks(masks, *size))
        shapes = dict(img_shape=size, pad_shape=size, batch_input_shape=size, scale_factor=(1.0, 1.0))
        samples.append(DetDataSample(gt_instances=objects, metainfo=shapes))
    return dict(inputs=[torch.randint(256, (3, *size), dtype=torch.uint8) for _ in samples], data_samples=samples)


@pytest.mark.parametrize('name', [*(f'digits/{name}' for name in DIGITS), *(FULL if DEVICE == 'cuda' else ())])
def test_a_step_of_each_recipe(name):
    cfg = load_config(CONFIGS / f'{name}.py')
    if not cfg.get('optim_wrapper'):
        pytest.skip('trains nothing by steps')
    detects = 'mask_rcnn' in name
    if detects or 'upernet' in name:
        pytest.importorskip('mmdet' if detects else 'mmseg')
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    model = build_model(cfg)
    if hasattr(model, 'init_weights'):
        model.init_weights()
    for part in model.modules():
        if hasattr(part, 'usage'):  # a tokenizer is taken for untrained else
            part.usage.fill_(1 / len(part.usage))
    model = model.to(DEVICE)
    if detects:
        grid, patch = model.backbone.grid, model.backbone.patch_size
        batch = objects_of(2, tuple(cells * pixels for cells, pixels in zip(grid, patch, strict=True)))
    else:
        batch = make_batch(cfg, model, 2)
    losses = model.train_step(batch, build_optim_wrapper(model, cfg.optim_wrapper))
    assert losses and all(torch.isfinite(torch.as_tensor(value)).all() for value in losses.values())


def test_interrupted_steps_repeat_bit_by_bit(tmp_path):
    """Two steps, their state loaded into a new model, two more: as four steps, with dropped paths and deterministic kernels."""

    _, batch = build()

    def start(seed):
        torch.manual_seed(seed)
        model = build(drop_path_rate=0.2)[0].to(DEVICE)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        wrapper = OPTIM_WRAPPERS.build(dict(type='mmcae.AmpOptimWrapper', dtype='bfloat16', optimizer=optimizer))
        return model, wrapper, lambda: float(model.train_step(dict(batch), wrapper)['loss'])

    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        model, wrapper, step = start(0)
        straight = [step() for _ in range(2)]
        accelerator = torch.cuda.get_rng_state() if DEVICE == 'cuda' else None
        state = dict(model=model.state_dict(), optimizer=wrapper.state_dict(), host=torch.get_rng_state(), device=accelerator)
        torch.save(state, tmp_path / 'state.pth')
        straight += [step() for _ in range(2)]
        model, wrapper, step = start(1)
        state = torch.load(tmp_path / 'state.pth', map_location='cpu', weights_only=True)
        model.load_state_dict(state['model'])
        wrapper.load_state_dict(state['optimizer'])
        torch.set_rng_state(state['host'])
        if DEVICE == 'cuda':
            torch.cuda.set_rng_state(state['device'])
        assert [step() for _ in range(2)] == straight[2:]
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
