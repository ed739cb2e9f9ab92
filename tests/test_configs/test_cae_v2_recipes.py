"""The recipes of CAE v2 against the authors' scripts, as they arrive in the objects built from the configs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from reference import golden

from mmcae.models import CAEv2
from mmcae.registry import DATASETS, MODELS
from mmcae.utils.configs.loading import load_config

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
IN1K = 'cae_v2_vit-{}-p16_8xb256-amp-coslr-300e_in1k'
# encoder (width, depth, heads); regressor (width, depth, heads); masked patches; layer scale; start; teacher's outputs and patch
RECIPES = {
    'tiny': dict(encoder=(192, 12, 12), latent=(96, 1, 12), masked=30, gamma=0.1, init='xavier', teacher=(512, 16, 'ViT-B-16.pt')),
    'small': dict(encoder=(384, 12, 12), latent=(384, 1, 12), masked=49, gamma=0.1, init='xavier', teacher=(512, 16, 'ViT-B-16.pt')),
    'base': dict(encoder=(768, 12, 12), latent=(768, 4, 12), masked=98, gamma=0.1, init='xavier', teacher=(512, 16, 'ViT-B-16.pt')),
    'large': dict(encoder=(1024, 24, 16), latent=(1024, 4, 16), masked=98, gamma=1e-5, init='beit', teacher=(768, 14, 'ViT-L-14.pt')),
}


def clip_file(tmp_path, outputs=24, patch=16, grid=14):
    """A small image tower of CLIP whose sizes are those of the file."""
    tower = golden.load('clip')
    state, width = dict(tower['state_dict']), tower['config']['width']
    state['visual.positional_embedding'] = torch.zeros(1 + grid**2, width)
    state['visual.conv1.weight'] = torch.randn(width, 3, patch, patch) / patch
    state['visual.proj'] = torch.randn(width, outputs)
    torch.save(state, tmp_path / 'clip.pth')
    return str(tmp_path / 'clip.pth')


def build(cfg, tmp_path, outputs=24, patch=16):
    model = cfg.model.copy()
    teacher = {key: value for key, value in model.target_generator.model.items() if key in ('type', 'img_size')}  # in the file's sizes
    model.target_generator = dict(model.target_generator, checkpoint=clip_file(tmp_path, outputs, patch), model=teacher)
    return MODELS.build(dict(model, data_preprocessor=cfg.data_preprocessor, init_cfg=None))


@pytest.mark.parametrize('size', RECIPES)
def test_parts(size, tmp_path):
    row, cfg = RECIPES[size], load_config(CONFIGS / f'cae_v2/{IN1K.format(size)}.py')
    outputs, patch, file = row['teacher']
    assert Path(cfg.model.target_generator.checkpoint).name == file and cfg.model.target_generator.projected
    with torch.device('meta'):
        student = MODELS.build(dict(cfg.model, target_generator=None, predictor=dict(num_outputs=outputs)))
    assert isinstance(student, CAEv2) and student.weight_init == row['init'] and student.supervise == ('cls', 'visible', 'masked')
    encoder, regressor = student.backbone, student.regressor
    assert (encoder.embed_dims, encoder.num_layers, encoder.blocks[0].attn.num_heads) == row['encoder']
    assert (regressor.embed_dims, len(regressor.blocks), regressor.blocks[0].attn.num_heads) == row['latent']
    assert isinstance(regressor.norm, torch.nn.Identity)
    assert {cfg.model[part].layer_scale_init_value for part in ('backbone', 'regressor')} == {row['gamma']}
    for stack in (encoder, regressor):
        rates = [getattr(block.drop_path, 'drop_prob', 0.0) for block in stack.blocks]
        assert rates == pytest.approx(np.linspace(0, 0.1, len(rates)))
    wrapper = build_optim_wrapper(student, cfg.optim_wrapper)
    assert {group['lr'] for group in wrapper.optimizer.param_groups} == {1.5e-3}
    assert wrapper.clip_grad_kwargs == dict(max_norm=3.0) and cfg.auto_scale_lr.base_batch_size == 8 * cfg.train_dataloader.batch_size
    schedule = cfg.param_scheduler[0]
    assert (schedule.warmup, schedule.end, schedule.eta_min, cfg.train_cfg.max_epochs) == (10, 300, 1e-5, 300)


@pytest.mark.parametrize('recipe', [*(IN1K.format(size) for size in RECIPES), IN1K.format('small').replace('in1k', 'objects365')])
def test_a_step(recipe, tmp_path, image_folder):
    """Data, masks and the teacher's view fit; the objective learns. Small widths, all else as it is."""
    init_default_scope('mmpretrain')
    size = recipe.split('-')[1]
    row = RECIPES[size]
    root = image_folder('data/train')
    if 'objects365' in recipe:
        paths = sorted(path.relative_to(root) for path in root.rglob('*') if path.is_file())[:3]
        (root / 'train.txt').write_text(''.join(f'{path}\n' for path in paths))
    cfg = load_config(CONFIGS / f'cae_v2/{recipe}.py', [f'data_root={root if "objects365" in recipe else root.parent}'])
    arch = dict(embed_dims=24, num_layers=1, num_heads=2)
    cfg.model.backbone.arch = arch
    cfg.model.regressor.update(in_dims=24, embed_dims=24, num_layers=1, num_heads=2)
    model = build(cfg, tmp_path, outputs=10, patch=row['teacher'][1])
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    assert len(dataset) == 3 or 'objects365' not in recipe
    samples = [dataset[number] for number in (0, 1)]
    for sample in samples:
        model.check_sample(sample['inputs'], sample['data_samples'])
        assert sample['data_samples'].mask.sum() == row['masked']
    views = [torch.stack(views) for views in zip(*(sample['inputs'] for sample in samples), strict=True)]
    assert [tuple(view.shape) for view in views] == [(2, 3, 224, 224)]
    batch = model.data_preprocessor(dict(inputs=views, data_samples=[sample['data_samples'] for sample in samples]), True)
    loss = model(**batch, mode='loss')['loss_main']
    loss.backward()
    assert 0 < loss < 2


def test_augmentation():
    """Colours change before the crop, which is larger than in CAE."""
    cfg = load_config(CONFIGS / f'cae_v2/{IN1K.format("base")}.py')
    steps = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
    assert list(steps) == [
        'mmcae.LoadImage', 'mmcae.ColorJitter', 'RandomFlip', 'mmcae.TwoViewCrop', 'mmcae.BlockMaskGenerator', 'PackInputs',
    ]  # fmt: skip
    assert steps['mmcae.ColorJitter'].backend == 'pillow'
    on_device = load_config(CONFIGS / f'cae_v2/{IN1K.format("base")}.py', ['resize_backend=device']).train_dataloader.dataset.pipeline
    assert on_device[1].backend == on_device[3].backend == 'device'
    assert steps['mmcae.TwoViewCrop'].scale == (0.4, 1.0) and steps['mmcae.BlockMaskGenerator'].get('min_block', 16) == 16


# global batch, lr, epochs, warm-up; for fine-tuning layer decay, drop path, Mixup and CutMix, smoothing
LINEAR = dict(tiny=(16384, 6.4), small=(8192, 3.2), base=(8192, 3.2))
FINETUNE = dict(
    tiny=(4e-3, 100, 5, 0.85, 0.0, [('Mixup', 0.2)], 0.0),
    small=(4e-4, 200, 20, 0.75, 0.1, [('Mixup', 0.8), ('CutMix', 1.0)], 0.1),
    base=(2e-4, 100, 5, 0.75, 0.1, [('Mixup', 0.8), ('CutMix', 1.0)], 0.1),
)


def only(folder, size):
    (path,) = (CONFIGS / folder).glob(f'*vit-{size}-p16_cae-v2*')
    return load_config(path)


@pytest.mark.parametrize('size', LINEAR)
def test_linear_probe(size):
    cfg, (batch, lr) = only('linear_probe', size), LINEAR[size]
    assert 8 * cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == batch
    assert cfg.optim_wrapper.optimizer.lr == lr and cfg.train_cfg.max_epochs == 90
    with torch.device('meta'):
        init_default_scope('mmpretrain')
        model = MODELS.build(dict(cfg.model, backbone=dict(cfg.model.backbone, init_cfg=None), data_preprocessor=cfg.data_preprocessor))
    assert model.head.fc.in_features == model.backbone.embed_dims == RECIPES[size]['encoder'][0]
    assert model.backbone.blocks[0].attn.num_heads == 12


@pytest.mark.parametrize('size', FINETUNE)
def test_finetuning(size):
    cfg, (lr, epochs, warmup, decay, drop_path, mixing, smoothing) = only('finetune', size), FINETUNE[size]
    assert 8 * cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == 1024
    assert (cfg.optim_wrapper.optimizer.lr, cfg.optim_wrapper.paramwise_cfg.layer_decay_rate) == (lr, decay)
    assert (cfg.train_cfg.max_epochs, cfg.param_scheduler[0].warmup, cfg.param_scheduler[0].end) == (epochs, warmup, epochs)
    with torch.device('meta'):
        init_default_scope('mmpretrain')
        model = MODELS.build(dict(cfg.model, backbone=dict(cfg.model.backbone, init_cfg=None), data_preprocessor=cfg.data_preprocessor))
    assert getattr(model.backbone.blocks[-1].drop_path, 'drop_prob', 0.0) == pytest.approx(drop_path)
    assert [(type(one).__name__, one.alpha) for one in model.data_preprocessor.batch_augments.augments] == mixing
    assert model.head.loss_module.label_smooth_val == smoothing
    assert model.head.fc.in_features == model.backbone.embed_dims == RECIPES[size]['encoder'][0]
