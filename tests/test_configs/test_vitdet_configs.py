"""ViTDet's recipes against its numbers: settings, model, parameter groups, learning rates, pipelines."""

import re

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope

from mmcae.registry import MODELS
from mmcae.utils.configs.loading import load_config

BASE = 'mask_rcnn/mask-rcnn_vitdet-base-p16_cae_32xb2-amp-lsj-1024-100e_coco'
LARGE = 'mask_rcnn/mask-rcnn_vitdet-large-p16_cae_64xb1-amp-lsj-1024-100e_coco'
CASCADE = 'cascade_mask_rcnn/cascade-mask-rcnn_vitdet-base-p16_cae_32xb2-amp-lsj-1024-100e_coco'
RECIPES = [BASE, LARGE, CASCADE]
# layer decay, drop path, layer scale, global blocks, blocks, width, images on a GPU
PROTOCOL = {'base': (0.7, 0.1, 0.1, (2, 5, 8, 11), 12, 768, 2), 'large': (0.8, 0.4, 1e-5, (5, 11, 17, 23), 24, 1024, 1)}


@pytest.fixture
def recipe(repository):
    return lambda name: load_config(repository / 'configs' / f'{name}.py')


@pytest.fixture
def without_storage(recipe):
    """A recipe and its model with all shapes and names, but without memory behind the parameters."""

    def build(name):
        cfg = recipe(name)
        init_default_scope('mmdet')
        with torch.device('meta'):
            return cfg, MODELS.build(cfg.model)

    return build


def size_of(name):
    return 'large' if 'large' in name else 'base'


def test_every_recipe_is_listed(repository):
    found = {f'{path.parent.name}/{path.stem}' for path in (repository / 'configs').glob('*/*vitdet*.py') if path.parent.name[0] != '_'}
    assert found == set(RECIPES)


@pytest.mark.parametrize('name', RECIPES)
def test_settings(recipe, name):
    cfg = recipe(name)
    layer_decay, drop_path, layer_scale, global_blocks, depth, _, batch_size = PROTOCOL[size_of(name)]
    assert cfg.optim_wrapper == dict(
        type='mmcae.AmpOptimWrapper',
        optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1),
        constructor='mmcae.LayerDecayOptimWrapperConstructor',
        paramwise_cfg=dict(layer_decay_rate=layer_decay),
    )
    backbone = cfg.model.backbone
    assert (backbone.drop_path_rate, backbone.layer_scale_init_value, backbone.arch) == (drop_path, layer_scale, size_of(name))
    assert (backbone.window_size, backbone.global_blocks, backbone.out_indices) == (14, global_blocks, (depth - 1,))
    assert not backbone.with_cp and not backbone.final_norm and not backbone.get('use_rel_pos_bias')
    assert backbone.init_cfg == dict(type='Pretrained', checkpoint=f'checkpoints/cae_vit-{size_of(name)}-p16_1600e.pth')
    gpus = int(re.search(r'_(\d+)xb', name)[1])
    assert cfg.train_dataloader.batch_size == batch_size and gpus * batch_size == cfg.auto_scale_lr.base_batch_size == 64
    assert cfg.train_cfg == dict(type='mmcae.EpochBasedTrainLoop', max_epochs=100, val_interval=5)
    assert backbone.img_size == (1024, 1024) and cfg.model.data_preprocessor.pad_size_divisor == 1024
    assert cfg.val_evaluator.metric == ['bbox', 'segm']


@pytest.mark.parametrize('name', RECIPES)
def test_model(without_storage, name):
    _, model = without_storage(name)
    *_, global_blocks, depth, width, _ = PROTOCOL[size_of(name)]
    blocks = model.backbone.blocks
    assert [i for i, block in enumerate(blocks) if block.attn.window is None] == list(global_blocks) and len(blocks) == depth
    assert model.backbone.pos_embed.shape == (1, 1 + 64 * 64, width) and model.backbone.grid == (64, 64)
    assert not model.backbone.embed_dims % 64 and list(model.backbone.norm.parameters()) == []
    assert type(model.neck).__name__ == 'SimpleFeaturePyramid' and model.neck.num_outs == 5
    assert [scale[1].in_channels for scale in model.neck.scales] == [width // 4, width // 2, width, width]
    assert len(model.rpn_head.rpn_conv) == 2
    cascade = 'cascade' in name
    heads = model.roi_head.bbox_head if cascade else [model.roi_head.bbox_head]
    assert len(heads) == (3 if cascade else 1)
    for head in heads:
        assert (len(head.shared_convs), len(head.shared_fcs), head.fc_out_channels, head.num_classes) == (4, 1, 1024, 80)
        assert head.reg_class_agnostic == cascade and not head.reg_decoded_bbox
        assert (type(head.loss_bbox).__name__, head.loss_bbox.loss_weight) == ('L1Loss', 1.0)
    masks = model.roi_head.mask_head if cascade else [model.roi_head.mask_head]
    normalised = [conv for head in heads for conv in head.shared_convs] + [conv for head in masks for conv in head.convs]
    normalised += [conv for scale in model.neck.scales for conv in scale[1:]]
    assert {(type(conv.norm).__name__, conv.norm.eps) for conv in normalised} == {('LayerNorm2d', 1e-6)}
    assert [len(head.convs) for head in masks] == [4] * len(masks)
    assert not [name for name, module in model.named_modules() if 'BatchNorm' in type(module).__name__]


@pytest.mark.parametrize('name', RECIPES)
def test_learning_rate_and_decay_of_every_parameter(without_storage, name):
    """Layer i of L has the rate to the power of L + 1 - i, what is not the encoder's has it whole; vectors alone are not decayed."""
    cfg, model = without_storage(name)
    rate, depth = PROTOCOL[size_of(name)][0], len(model.backbone.blocks)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(parameter)]: (group['lr'], group['weight_decay'])
        for group in wrapper.optimizer.param_groups
        for parameter in group['params']
    }
    assert set(found) == set(names.values())
    for parameter, (got_lr, got_decay) in found.items():
        part = parameter.split('.')
        if parameter.startswith('backbone.blocks.'):
            power = depth - int(part[2])
        else:
            power = depth + 1 if part[0] == 'backbone' else 0
        assert got_lr == pytest.approx(1e-4 * rate**power), parameter
        assert got_decay == (0.0 if model.get_parameter(parameter).ndim == 1 else 0.1), parameter
    table = {
        'backbone.cls_token': (1e-4 * rate ** (depth + 1), 0.1),
        'backbone.patch_embed.proj.weight': (1e-4 * rate ** (depth + 1), 0.1),
        'backbone.blocks.0.attn.qkv.weight': (1e-4 * rate**depth, 0.1),
        'backbone.blocks.0.gamma_1': (1e-4 * rate**depth, 0.0),
        f'backbone.blocks.{depth - 1}.mlp.fc1.weight': (1e-4 * rate, 0.1),
        'neck.scales.0.0.0.weight': (1e-4, 0.1),
        'neck.scales.0.0.1.weight': (1e-4, 0.0),
        'neck.scales.3.2.conv.weight': (1e-4, 0.1),
        'rpn_head.rpn_conv.1.conv.weight': (1e-4, 0.1),
    }
    assert {name: (pytest.approx(found[name][0]), found[name][1]) for name in table} == table
    assert 'backbone.pos_embed' not in found


def test_learning_rate_of_every_iteration(recipe):
    """250 iterations of warm-up from a thousandth, then the full rate, a tenth after 89 epochs and a hundredth after 96 of 100.

    ViTDet's steps come after 163,889 and 177,546 of 184,375 iterations: the same epochs.
    """
    assert [round(100 * step / 184375) for step in (163889, 177546)] == [89, 96]
    length = 260  # iterations an epoch
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
    by_iteration, by_epoch = (PARAM_SCHEDULERS.build(dict(settings, optimizer=optimizer)) for settings in recipe(BASE).param_scheduler)
    optimizer.step()
    for epoch in range(100):
        for iteration in range(epoch * length, (epoch + 1) * length):
            wanted = 1e-4 * min(0.001 + 0.999 * iteration / 250, 1) * (1 if epoch < 89 else 0.1 if epoch < 96 else 0.01)
            assert optimizer.param_groups[0]['lr'] == pytest.approx(wanted), (epoch, iteration)
            by_iteration.step()
        by_epoch.step()


def test_large_scale_jittering(recipe):
    """0.1 to 2 times the size that fits into 1024x1024, cut to it; tested at the size that fits, with and without a mirror image."""
    cfg = recipe(BASE)
    steps = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
    assert (steps['RandomResize'].scale, steps['RandomResize'].ratio_range) == ((1024, 1024), (0.1, 2.0))
    assert steps['RandomCrop'].crop_size == (1024, 1024) and steps['RandomCrop'].recompute_bbox and steps['RandomFlip'].prob == 0.5
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.pipeline[1] == dict(type='Resize', scale=(1024, 1024), keep_ratio=True)
    scales, flips, _ = cfg.tta_pipeline[1].transforms
    assert [step.scale for step in scales] == [(1024, 1024)] and [step.prob for step in flips] == [1.0, 0.0]
    assert (
        cfg.train_dataloader.dataset.filter_cfg
        == recipe('mask_rcnn/mask-rcnn_vit-base-p16_cae_16xb2-amp-1x_coco').train_dataloader['dataset'].filter_cfg
    )


def test_what_is_not_vitdets_is_the_papers(recipe):
    """Anchors, samplers, thresholds and box coders of the other recipe, which are mmdet's."""
    ours, papers = recipe(BASE).model, recipe('mask_rcnn/mask-rcnn_vit-base-p16_cae_16xb2-amp-1x_coco').model
    assert ours.train_cfg == papers.train_cfg and ours.test_cfg == papers.test_cfg
    assert ours.rpn_head == dict(papers.rpn_head, num_convs=2)
    assert ours.roi_head.bbox_roi_extractor == papers.roi_head.bbox_roi_extractor
    cascade, papers = recipe(CASCADE).model, recipe('cascade_mask_rcnn/cascade-mask-rcnn_vit-base-p16_cae_16xb2-amp-1x_coco').model
    assert cascade.train_cfg == papers.train_cfg and cascade.test_cfg == papers.test_cfg
    for found, wanted in zip(cascade.roi_head.bbox_head, papers.roi_head.bbox_head, strict=True):
        assert found.bbox_coder == wanted.bbox_coder and found.loss_cls == wanted.loss_cls


def test_relative_position_bias(repository):
    """The option that docs/detection.md names: tables for windows, and for the whole image in global blocks; pretraining has none."""
    options = ('model.backbone.use_rel_pos_bias=True', 'model.backbone.init_cfg.allow_missing=[relative_position_bias_table]')
    assert all(part in (repository / 'docs/detection.md').read_text().replace('"', '') for part in options)
    cfg = load_config(repository / 'configs' / f'{BASE}.py', options)
    assert cfg.model.backbone.init_cfg.allow_missing == ['relative_position_bias_table']
    init_default_scope('mmdet')
    with torch.device('meta'):
        blocks = MODELS.build(cfg.model).backbone.blocks
    lengths = [len(block.attn.relative_position_bias_table) for block in blocks]
    assert lengths == [127**2 + 3 if i in (2, 5, 8, 11) else 27**2 + 3 for i in range(12)]
