"""The pretraining recipes against the authors' table: every hyper-parameter, as it arrives in the objects built from the configs."""

import math
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.models.selfsup.cae import DALLEEncoder

import mmcae.datasets  # noqa: F401
import mmcae.models  # noqa: F401
from mmcae.apis import load_cae
from mmcae.datasets.sources.store_tokens import RandomViews, fill
from mmcae.datasets.sources.token_store import Manifest
from mmcae.engine import CheckpointHook
from mmcae.models import CAE
from mmcae.registry import DATASETS, HOOKS, MODELS, PARAM_SCHEDULERS, TRANSFORMS
from mmcae.utils.configs.loading import load_config

FOLDER = Path(__file__).resolve().parents[2] / 'configs' / 'cae'
IMAGENET = 1_281_167
# epochs, warm-up epochs; width, depth and heads of the encoder; width, depth and heads of regressor and decoder; layer scale; start
BASE = dict(encoder=(768, 12, 12), latent=(768, 4, 12), gamma=0.1, weight_init='xavier')
RECIPES = {
    'cae_vit-base-p16_32xb64-amp-coslr-300e_in1k': dict(epochs=300, warmup=10, **BASE),
    'cae_vit-base-p16_32xb64-amp-coslr-800e_in1k': dict(epochs=800, warmup=20, **BASE),
    'cae_vit-base-p16_32xb64-amp-coslr-1600e_in1k': dict(epochs=1600, warmup=40, **BASE),
    'cae_vit-large-p16_32xb64-amp-coslr-1600e_in1k': dict(
        epochs=1600, warmup=40, encoder=(1024, 24, 16), latent=(1024, 4, 16), gamma=1e-5, weight_init='beit'
    ),
    'cae_vit-small-p16_32xb64-amp-coslr-300e_in1k': dict(
        epochs=300, warmup=10, encoder=(384, 12, 12), latent=(384, 4, 12), gamma=0.1, weight_init='xavier'
    ),
    'cae_vit-tiny-p16_32xb64-amp-coslr-300e_in1k': dict(
        epochs=300, warmup=10, encoder=(192, 12, 12), latent=(192, 4, 12), gamma=0.1, weight_init='xavier'
    ),
}


@pytest.fixture(params=RECIPES, scope='module')
def recipe(request):
    """The table's row, the config, and the model built without memory and without the tokenizer's file."""
    cfg = load_config(FOLDER / f'{request.param}.py')
    model = cfg.model.copy()
    model.target_generator = dict(model.target_generator, checkpoint=None)
    with torch.device('meta'):
        return RECIPES[request.param], cfg, MODELS.build(model)


def test_table_is_complete():
    """Every recipe in the folder is in the table above, and the other way round, but for variants that say what they change."""
    variants = {path.stem for kind in ('32xb64-fsdp', '32xb64-deepspeed', 'stored-tokens') for path in FOLDER.glob(f'*{kind}*_in1k.py')}
    assert len(variants) == 4 and {path.stem for path in FOLDER.glob('*_in1k.py')} - variants == set(RECIPES)


def test_stored_tokens_change_nothing_but_where_targets_come_from(image_folder, tmp_path):
    base = load_config(FOLDER / 'cae_vit-base-p16_32xb64-amp-coslr-300e_in1k.py', [f'data_root={image_folder("in1k/train").parent}'])
    init_default_scope('mmpretrain')
    views = RandomViews(DATASETS.build(base.train_dataloader.dataset), 2, 0)
    tokens = torch.arange(196).view(1, 14, 14).expand(2, -1, -1)
    fill(tmp_path / 'tokens', Manifest(8, 2, (14, 14), 8192, {}), views, lambda images: tokens, 1, 0)
    changes = [f'tokens={tmp_path / "tokens"}', f'data_root={tmp_path / "in1k"}']
    cfg = load_config(FOLDER / 'cae_vit-base-p16_stored-tokens_32xb64-amp-coslr-300e_in1k.py', changes)
    for key in ('optim_wrapper', 'param_scheduler', 'train_cfg', 'default_hooks'):
        assert cfg[key] == base[key], key
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert model.decoder.head.out_features == 8192
    sample = DATASETS.build(cfg.train_dataloader.dataset)[3]
    model.check_sample(sample['inputs'], sample['data_samples'])
    assert sample['data_samples'].mask.sum() == 98 and sample['inputs'][0].shape == (3, 224, 224)
    batch = dict(inputs=[view[None] for view in sample['inputs']], data_samples=[sample['data_samples']])
    view = MODELS.build(cfg.data_preprocessor)(batch, True)['inputs'][1]
    assert model.target_generator.targets(view, torch.tensor([[0, 100, 195]])).tolist() == [[0, 100, 195]]


def test_parts(recipe):
    row, cfg, model = recipe
    assert isinstance(model, CAE)
    encoder, width = model.backbone, row['encoder'][0]
    assert (encoder.embed_dims, encoder.num_layers, encoder.blocks[0].attn.num_heads) == row['encoder']
    assert encoder.grid == (14, 14) and encoder.patch_size == (16, 16)
    for part in (model.regressor, model.decoder):
        assert (part.norm.normalized_shape[0], len(part.blocks), part.blocks[0].attn.num_heads) == row['latent']
    for stack in (encoder, model.regressor, model.decoder):
        assert all(block.mlp.fc1.out_features == 4 * block.mlp.fc1.in_features for block in stack.blocks)
    assert model.regressor.in_dims == width and isinstance(model.regressor.project, torch.nn.Identity)
    assert model.decoder.head.out_features == model.target_generator.vocab_size == 8192
    assert model.align_loss_weight == 2
    assert model.weight_init == row['weight_init']
    assert encoder.frozen_stages == -1 and encoder.blocks[0].attn.relative_position_bias_table is None
    assert cfg.default_scope == 'mmpretrain'


def test_layer_scale(recipe):
    row, cfg, _ = recipe
    assert {cfg.model[part].layer_scale_init_value for part in ('backbone', 'regressor', 'decoder')} == {row['gamma']}


def test_drop_path(recipe):
    """Linear from 0 to 0.1 within each part by itself."""
    _, _, model = recipe
    for stack in (model.backbone, model.regressor, model.decoder):
        rates = [getattr(block.drop_path, 'drop_prob', 0.0) for block in stack.blocks]
        assert rates == pytest.approx(np.linspace(0, 0.1, len(stack.blocks)))


def test_optimizer(recipe):
    row, cfg, model = recipe
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    assert type(wrapper).__name__ == 'AmpOptimWrapper' and wrapper.cast_dtype == torch.bfloat16
    assert not wrapper.loss_scaler.is_enabled()
    assert wrapper.clip_grad_kwargs == dict(max_norm=3.0)
    assert isinstance(wrapper.optimizer, torch.optim.AdamW)
    found = {}
    names = {id(p): name for name, p in model.named_parameters()}
    for group in wrapper.optimizer.param_groups:
        assert group['betas'] == (0.9, 0.999) and group['eps'] == 1e-8 and group['lr'] == 1.5e-3
        found |= {names[id(p)]: group['weight_decay'] for p in group['params']}
    # Everything but the tokenizer is trained, matrices and the two tokens with decay, vectors without.
    expected = {}
    for name, parameter in model.named_parameters():
        if not name.startswith('target_generator.'):
            expected[name] = 0.05 if parameter.ndim > 1 else 0.0
    assert found == expected
    assert found['backbone.cls_token'] == found['regressor.mask_token'] == 0.05
    for name in ('attn.q_bias', 'attn.v_bias', 'gamma_1', 'gamma_2', 'norm1.weight', 'attn.proj.bias'):
        assert found[f'backbone.blocks.0.{name}'] == 0, name
    assert not any('pos_embed' in name for name in found)


def test_learning_rate(recipe):
    """0 at the first step, 1.5e-3 at the last of the warm-up and at the first of the cosine, 1e-5 as the floor; a value every iteration."""
    row, cfg, _ = recipe
    length = IMAGENET // 2048  # drop_last
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=cfg.optim_wrapper.optimizer.lr)
    (config,) = cfg.param_scheduler
    scheduler = PARAM_SCHEDULERS.build(config, default_args=dict(optimizer=optimizer, epoch_length=length))
    optimizer.step()
    warmup, total = row['warmup'] * length, row['epochs'] * length
    assert cfg.train_cfg == dict(type='mmcae.EpochBasedTrainLoop', max_epochs=row['epochs'])

    def rate(step):
        if step:
            scheduler.last_step = scheduler._global_step = step - 1
            scheduler.step()
        return optimizer.param_groups[0]['lr']

    assert rate(0) == 0
    for step in (1, warmup // 3, warmup - 1):
        assert rate(step) == pytest.approx(1.5e-3 * step / (warmup - 1), rel=1e-9)
    assert rate(warmup - 1) == rate(warmup) == 1.5e-3
    for step in (warmup + 1, (warmup + total) // 2, total - 1):
        cosine = (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2
        assert rate(step) == pytest.approx(1e-5 + (1.5e-3 - 1e-5) * cosine, rel=1e-9)
    assert 1e-5 < rate(total - 1) < 1e-5 * (1 + 1e-4)


def test_batch_arithmetic(recipe):
    """The number of GPUs and images per GPU in the name, and the batch that the learning rate was chosen for."""
    _, cfg, _ = recipe
    gpus, images = map(int, re.search(r'_(\d+)xb(\d+)-', Path(cfg.filename).name).groups())
    assert cfg.train_dataloader.batch_size == images
    assert gpus * images == cfg.auto_scale_lr.base_batch_size == 2048
    assert cfg.auto_scale_lr.enable is False  # --auto-scale-lr turns it on
    assert 'accumulative_counts' not in cfg.optim_wrapper
    assert cfg.train_dataloader.drop_last and cfg.train_dataloader.sampler.shuffle


def test_views_and_mask(recipe):
    """One box and one flip for both views; bicubic 224 and Lanczos 112; 98 of 196 patches in blocks of at least 16."""
    _, cfg, _ = recipe
    steps = [TRANSFORMS.build(step) for step in cfg.train_dataloader.dataset.pipeline if step.type.startswith('mmcae.')]
    _, crop, mask = steps
    assert (crop.size, crop.second_size) == ((224, 224), (112, 112))
    assert crop.scale == (0.08, 1.0) and crop.ratio == (3 / 4, 4 / 3)
    assert (crop.interpolation, crop.second_interpolation) == ('bicubic', 'lanczos')
    assert (mask.grid, mask.num_masked, mask.min_block, mask.max_block) == ((14, 14), 98, 16, 98)
    assert mask.aspect == pytest.approx((0.3, 1 / 0.3))
    flip = next(step for step in cfg.train_dataloader.dataset.pipeline if 'Flip' in step.type)
    assert flip == dict(type='RandomFlip', prob=0.5)
    names = [step.type for step in cfg.train_dataloader.dataset.pipeline]
    assert names == ['mmcae.LoadImage', 'RandomFlip', 'mmcae.TwoViewCrop', 'mmcae.BlockMaskGenerator', 'PackInputs']


def test_from_a_file_to_normalised_views(recipe, image_folder):
    """The whole pipeline on a real image: shapes, ImageNet's statistics for the model, 0.8 x + 0.1 for the tokenizer."""
    _, cfg, model = recipe
    from mmengine.registry import DefaultScope

    random.seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        pipeline = Compose(cfg.train_dataloader.dataset.pipeline)
        path = next(image_folder(size=(300, 260)).rglob('*.png'))
        sample = pipeline(dict(img_path=str(path)))
        preprocessor = MODELS.build(cfg.data_preprocessor)
    assert [tuple(view.shape) for view in sample['inputs']] == [(3, 224, 224), (3, 112, 112)]
    assert sample['data_samples'].mask.shape == (14, 14) and sample['data_samples'].mask.sum() == 98
    batch = dict(inputs=[view[None] for view in sample['inputs']], data_samples=[sample['data_samples']])
    image, view = preprocessor(batch)['inputs']
    x, y = (view[None] / 255 for view in sample['inputs'])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(image, (x - mean) / std, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(view, 0.8 * y + 0.1, rtol=1e-5, atol=1e-6)
    model.target_generator.check_view(tuple(view.shape[-2:]), model.backbone.grid)


def test_checkpoints(recipe):
    """Every 100 epochs, all of them kept, and the last; besides, what a crash may cost: 500 iterations."""
    _, cfg, _ = recipe
    hook = HOOKS.build(cfg.default_hooks.checkpoint)
    assert type(hook) is CheckpointHook and hook.recovery_interval == 500
    assert (hook.interval, hook.by_epoch, hook.save_last, hook.max_keep_ckpts) == (100, True, True, -1)
    assert cfg.randomness == dict(seed=0, diff_rank_seed=True)


def test_faults_are_noticed(recipe):
    """A loss that is not finite stops the run at once, a lost process after ten minutes, unreadable files when they are more than 1 %."""
    _, cfg, _ = recipe
    checks = HOOKS.build(cfg.default_hooks.checks).checks
    assert (checks['loss'].patience, checks['loss'].scaled_patience) == (1, 50) and checks['bad_files'].max_share == 0.01
    assert cfg.env_cfg.dist_cfg == dict(backend='nccl', timeout=600)


def test_initialisation_of_the_recipes():
    """The start that each recipe names, on narrower and fewer blocks."""
    dim = 64
    for name, largest in (('base-p16_32xb64-amp-coslr-300e', None), ('large-p16_32xb64-amp-coslr-1600e', 0.02)):
        config = Config.fromfile(FOLDER / f'cae_vit-{name}_in1k.py').model
        config.backbone.arch = dict(embed_dims=dim, num_layers=2, num_heads=4)
        config.regressor.in_dims = dim
        for part in (config.regressor, config.decoder):
            part.update(embed_dims=dim, num_layers=1, num_heads=4)
        config.decoder.num_outputs, config.target_generator = 8, None
        model = MODELS.build(config)
        model.init_weights()
        qkv = model.backbone.blocks[0].attn.qkv.weight
        assert qkv.abs().max().item() == pytest.approx(largest or math.sqrt(6 / (4 * dim)), rel=0.01)
        gammas = {round(value, 8) for n, p in model.named_parameters() if 'gamma' in n for value in p.unique().tolist()}
        assert gammas == {config.backbone.layer_scale_init_value}


def test_recipe_trains(image_folder, tmp_path):
    """The base recipe from image files to a checkpoint, with fewer and narrower blocks, a small tokenizer and two epochs of two steps."""
    cfg = load_config(FOLDER / 'cae_vit-base-p16_32xb64-amp-coslr-300e_in1k.py')
    image_folder('imagenet/train', size=(64, 80), count=2)
    torch.save(DALLEEncoder(n_hid=8, n_blk_per_group=1, vocab_size=32).state_dict(), tmp_path / 'dalle.pth')
    small = dict(embed_dims=32, num_layers=1, num_heads=2)
    cfg.model.backbone.arch = small
    cfg.merge_from_dict({
        'model.regressor': dict(in_dims=32, **small),
        'model.decoder': dict(num_outputs=32, **small),
        'model.target_generator.checkpoint': str(tmp_path / 'dalle.pth'),
        'train_dataloader.dataset.data_root': str(tmp_path / 'imagenet'),
        'train_dataloader.batch_size': 2,
        'train_dataloader.num_workers': 0,
        'train_dataloader.persistent_workers': False,
        'train_cfg.max_epochs': 2,
        'param_scheduler': [dict(cfg.param_scheduler[0], warmup=1, end=2)],
        'default_hooks.logger.interval': 1,
        'work_dir': str(tmp_path / 'run'),
    })  # fmt: skip
    runner = Runner.from_cfg(cfg)
    runner.train()
    scalars = runner.message_hub.log_scalars
    assert scalars['train/lr'].data[0].tolist() == pytest.approx([0, 1.5e-3, 1.5e-3, (1.5e-3 + 1e-5) / 2])
    for name in ('loss', 'loss_main', 'loss_align', 'mlm_acc', 'grad_norm'):
        values = scalars[f'train/{name}'].data[0]
        assert len(values) == 4 and np.isfinite(values).all(), name
    # Two views per image, cross entropy over 32 tokens from the start.
    assert scalars['train/loss_main'].data[0][0] == pytest.approx(math.log(32), rel=0.3)
    model = load_cae(tmp_path / 'run' / 'epoch_2.pth')
    for key, value in runner.model.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


def test_without_the_data_the_run_stops_with_one_message(run_tool, tmp_path):
    """It names the path it looked at and what to do."""
    config = FOLDER / 'cae_vit-base-p16_32xb64-amp-coslr-300e_in1k.py'
    options = f'train_dataloader.dataset.data_root={tmp_path}/nowhere'
    code, output = run_tool('tools/train.py', config, '--work-dir', tmp_path / 'run', '--cfg-options', options, timeout=300)
    assert code == 2 and 'Traceback' not in output, output
    message = output.strip().splitlines()[-1]
    assert message.startswith('error: ') and f'{tmp_path}/nowhere' in message and 'data_root' in message


def test_without_the_tokenizer_the_run_stops_with_one_message(run_tool, image_folder, tmp_path):
    """It names the path it looked at and the command that prepares it."""
    image_folder('imagenet/train')
    config = FOLDER / 'cae_vit-base-p16_32xb64-amp-coslr-300e_in1k.py'
    options = (f'train_dataloader.dataset.data_root={tmp_path}/imagenet', f'model.target_generator.checkpoint={tmp_path}/dalle_encoder.pth')
    code, output = run_tool('tools/train.py', config, '--work-dir', tmp_path / 'run', '--cfg-options', *options, timeout=300)
    assert code == 2 and 'Traceback' not in output, output
    message = output.strip().splitlines()[-1]
    assert message.startswith('error: ') and f'{tmp_path}/dalle_encoder.pth' in message
    assert 'mmcae convert encoder.pkl' in message
