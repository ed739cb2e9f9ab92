"""The classification recipes have the paper's numbers, and everything in them builds and runs."""

import pytest
import torch
from mmengine.registry import init_default_scope
from mmpretrain.structures import DataSample

from mmcae.models import AttentiveClsHead
from mmcae.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS, TRANSFORMS
from mmcae.utils.configs.loading import load_config

GPUS = 32
# Section 6 of the reference: config, batch, optimizer, lr, weight decay, epochs, warm-up, floor, layer decay, drop path.
PAPER = {
    'linear_probe/linear_vit-base-p16_cae_32xb512-amp-90e_in1k.py': (16384, 'LARS', 6.4, 0, 90, 10, 0, None, 0),
    'linear_probe/linear_vit-large-p16_cae_32xb512-amp-90e_in1k.py': (16384, 'LARS', 6.4, 0, 90, 10, 0, None, 0),
    'attentive_probe/attentive_vit-base-p16_cae_32xb256-amp-90e_in1k.py': (8192, 'SGD', 0.4, 0, 90, 10, 1e-6, None, 0),
    'attentive_probe/attentive_vit-large-p16_cae_32xb256-amp-90e_in1k.py': (8192, 'SGD', 0.4, 0, 90, 10, 1e-6, None, 0),
    'finetune/finetune_vit-base-p16_cae_32xb128-amp-100e_in1k.py': (4096, 'AdamW', 8e-3, 0.05, 100, 5, 1e-6, 0.65, 0.1),
    'finetune/finetune_vit-large-p16_cae_32xb64-accum2-amp-50e_in1k.py': (4096, 'AdamW', 2e-3, 0.05, 50, 5, 1e-6, 0.75, 0.2),
}
ALL = (*PAPER, 'knn/knn_vit-base-p16_cae_in1k.py', 'knn/knn_vit-large-p16_cae_in1k.py')
SIZES = {'base': (768, 12, 12), 'large': (1024, 24, 16)}


@pytest.fixture
def load(repository):
    return lambda name: load_config(repository / 'configs' / name)


@pytest.mark.parametrize('name', PAPER)
def test_numbers_of_the_paper(load, name):
    cfg = load(name)
    batch, optimizer, lr, decay, epochs, warmup, floor, layer_decay, drop_path = PAPER[name]
    wrapper = cfg.optim_wrapper
    assert GPUS * cfg.train_dataloader.batch_size * wrapper.get('accumulative_counts', 1) == batch == cfg.auto_scale_lr.base_batch_size
    assert (wrapper.optimizer.type, wrapper.optimizer.lr, wrapper.optimizer.weight_decay) == (optimizer, lr, decay)
    assert wrapper.get('paramwise_cfg', {}).get('layer_decay_rate') == layer_decay
    assert 'clip_grad' not in wrapper
    (schedule,) = cfg.param_scheduler
    assert (schedule.warmup, schedule.end, schedule.eta_min) == (warmup, epochs, floor) and cfg.train_cfg.max_epochs == epochs
    assert cfg.model.backbone.get('drop_path_rate', 0) == drop_path


@pytest.mark.parametrize('name', ALL)
def test_widths_and_frozen_blocks_fit_the_encoder(load, name):
    model = load(name).model
    width, depth, heads = SIZES[model.backbone.arch]
    frozen = model.backbone.get('frozen_stages', -1)
    assert frozen == (depth if 'probe' in name else -1)
    assert (model.get('neck') or {}).get('input_features', width) == width
    head = model.get('head') or {}
    assert head.get('in_channels', width) == width and head.get('num_heads', heads) == heads


@pytest.mark.parametrize('name', ALL)
def test_pipelines_give_what_the_encoder_takes(load, name, image_folder):
    cfg = load(name)
    image = next(image_folder('images', ('a',), 1, size=(300, 250)).rglob('*.jpg'))
    pipelines = [cfg.test_dataloader.dataset.pipeline]
    if cfg.train_dataloader:
        pipelines.append(cfg.train_dataloader.dataset.dataset.pipeline)
    else:
        pipelines.append(cfg.test_cfg.bank_dataloader.dataset.dataset.pipeline)
    for pipeline in pipelines:
        results = dict(img_path=str(image), gt_label=3)
        for step in pipeline:
            results = TRANSFORMS.build(dict(step, type=f'mmpretrain.{step.type}'))(results)
        assert results['inputs'].shape == (3, 224, 224) and results['inputs'].dtype == torch.uint8
        assert results['data_samples'].gt_label.item() == 3


def built(cfg):
    """The model of a config with a narrow encoder of the same depth, in training mode."""
    depth = SIZES[cfg.model.backbone.arch][1]
    cfg.model.backbone.update(arch=dict(embed_dims=24, num_layers=depth, num_heads=2), init_cfg=None)
    cfg.model.head.in_channels = 24
    if 'num_heads' in cfg.model.head:
        cfg.model.head.num_heads = 2
    if cfg.model.get('neck'):
        cfg.model.neck.input_features = 24
    model = MODELS.build(dict(cfg.model, type='mmpretrain.ImageClassifier', data_preprocessor=dict(cfg.data_preprocessor)))
    model.init_weights()
    return model.train()


def update(model, cfg):
    """One step on four images: the parameters that changed, and the optimizer."""
    init_default_scope(cfg.default_scope)
    wrapper = dict(cfg.optim_wrapper, type='OptimWrapper')
    constructor = wrapper.pop('constructor', 'DefaultOptimWrapperConstructor')
    paramwise = wrapper.pop('paramwise_cfg', None)
    wrapper = OPTIM_WRAPPER_CONSTRUCTORS.build(dict(type=constructor, optim_wrapper_cfg=wrapper, paramwise_cfg=paramwise))(model)
    samples = [DataSample().set_gt_label(label) for label in range(4)]
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for _ in range(cfg.optim_wrapper.get('accumulative_counts', 1)):
        data = dict(inputs=torch.randint(0, 256, (4, 3, 224, 224), dtype=torch.uint8), data_samples=samples)
        model.train_step(data, wrapper)
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    return changed, wrapper.optimizer


def test_linear_probing_trains_the_classifier_alone_by_lars(load):
    cfg = load('linear_probe/linear_vit-base-p16_cae_32xb512-amp-90e_in1k.py')
    model = built(cfg)
    assert model.head.fc.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert model.neck.bn.eps == 1e-6 and not model.neck.bn.affine
    changed, optimizer = update(model, cfg)
    assert changed == {'head.fc.weight', 'head.fc.bias'}
    excluded = {
        group['params'][0].ndim: group.get('lars_exclude', False) for group in optimizer.param_groups if group['params'][0].requires_grad
    }
    assert excluded == {2: False, 1: True}


def test_attentive_probing_trains_the_head_alone(load):
    cfg = load('attentive_probe/attentive_vit-base-p16_cae_32xb256-amp-90e_in1k.py')
    model = built(cfg)
    assert isinstance(model.head, AttentiveClsHead) and model.backbone.out_type == 'raw'
    changed, _ = update(model, cfg)
    assert changed and all(name.startswith('head.') for name in changed) and {'head.attn.v.weight', 'head.fc.weight'} <= changed


def test_fine_tuning_trains_all_with_layer_wise_rates_and_decayed_bias_tables(load):
    cfg = load('finetune/finetune_vit-base-p16_cae_32xb128-amp-100e_in1k.py')
    model = built(cfg)
    assert model.backbone.out_type == 'avg_featmap' and model.head.fc.weight.std().item() == pytest.approx(2e-5, rel=0.05)
    changed, optimizer = update(model, cfg)
    assert {'backbone.patch_embed.proj.weight', 'backbone.blocks.0.attn.relative_position_bias_table', 'backbone.norm.weight'} <= changed
    settings = {id(parameter): group for group in optimizer.param_groups for parameter in group['params']}
    named = dict(model.named_parameters())
    for name, power, decay in (
        ('head.fc.weight', 0, 0.05),
        ('backbone.norm.weight', 0, 0),
        ('backbone.blocks.11.mlp.fc1.weight', 1, 0.05),
        ('backbone.blocks.0.attn.relative_position_bias_table', 12, 0.05),
        ('backbone.blocks.0.gamma_1', 12, 0),
        ('backbone.cls_token', 13, 0),
    ):
        group = settings[id(named[name])]
        assert group['lr'] == pytest.approx(8e-3 * 0.65**power), name
        assert group['weight_decay'] == decay, name


def test_mixed_labels_are_those_of_the_paper(load):
    """Mixup 0.8 or cutmix 1.0, evenly, on every batch, and label smoothing 0.1 on what comes out."""
    model = built(load('finetune/finetune_vit-base-p16_cae_32xb128-amp-100e_in1k.py'))
    augments = model.data_preprocessor.batch_augments
    assert [(type(augment).__name__, augment.alpha) for augment in augments.augments] == [('Mixup', 0.8), ('CutMix', 1.0)]
    assert augments.probs is None
    scores = torch.randn(2, 1000)
    mixed = torch.zeros(2, 1000)
    mixed[:, 3], mixed[:, 7] = 0.3, 0.7
    target = 0.9 * mixed + 0.1 / 1000
    expected = -(target * scores.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(model.head.loss_module(scores, mixed), expected)
