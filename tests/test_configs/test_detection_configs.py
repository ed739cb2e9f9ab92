"""The detection recipes against the numbers of the paper's protocol: settings, parameter groups, learning rates, pipelines."""

import re
from pathlib import Path

import mmdet
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope

from mmcae.registry import MODELS
from mmcae.utils.configs.loading import load_config

BASE = 'mask_rcnn/mask-rcnn_vit-base-p16_cae_16xb2-amp-1x_coco'
LARGE = 'mask_rcnn/mask-rcnn_vit-large-p16_cae_16xb2-amp-1x_coco'
CASCADE_BASE = 'cascade_mask_rcnn/cascade-mask-rcnn_vit-base-p16_cae_16xb2-amp-1x_coco'
CASCADE_LARGE = 'cascade_mask_rcnn/cascade-mask-rcnn_vit-large-p16_cae_16xb2-amp-1x_coco'
RECIPES = [BASE, LARGE, CASCADE_BASE, CASCADE_LARGE]
# lr, layer decay, layer scale, blocks that give features
PROTOCOL = {'base': (3e-4, 0.75, 0.1, (3, 5, 7, 11)), 'large': (2e-4, 0.85, 1e-5, (7, 11, 15, 23))}


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
    found = {path for folder in ('mask_rcnn', 'cascade_mask_rcnn') for path in (repository / 'configs' / folder).glob('*_vit-*.py')}
    assert {f'{path.parent.name}/{path.stem}' for path in found} == set(RECIPES)


@pytest.mark.parametrize('name', RECIPES)
def test_settings(recipe, name):
    cfg = recipe(name)
    lr, layer_decay, layer_scale, out_indices = PROTOCOL[size_of(name)]
    assert cfg.optim_wrapper == dict(
        type='mmcae.AmpOptimWrapper',
        optimizer=dict(type='AdamW', lr=lr, betas=(0.9, 0.999), weight_decay=0.05),
        constructor='mmcae.LayerDecayOptimWrapperConstructor',
        paramwise_cfg=dict(layer_decay_rate=layer_decay),
    )
    backbone = cfg.model.backbone
    assert (backbone.arch, backbone.layer_scale_init_value, backbone.out_indices) == (size_of(name), layer_scale, out_indices)
    assert backbone.drop_path_rate == 0.2 and backbone.with_cp and not backbone.final_norm and not backbone.get('use_rel_pos_bias')
    assert backbone.init_cfg == dict(type='Pretrained', checkpoint=f'checkpoints/cae_vit-{size_of(name)}-p16_1600e.pth')
    assert cfg.train_dataloader.batch_size == 2 and cfg.auto_scale_lr == dict(enable=False, base_batch_size=32)
    assert cfg.train_cfg == dict(type='mmcae.EpochBasedTrainLoop', max_epochs=12, val_interval=1)
    assert cfg.model.data_preprocessor.pad_size_divisor == 32
    assert cfg.val_evaluator.metric == ['bbox', 'segm']


@pytest.mark.parametrize('name', RECIPES)
def test_model(without_storage, name):
    cfg, model = without_storage(name)
    width, depth = (1024, 24) if 'large' in name else (768, 12)
    assert len(model.backbone.blocks) == depth and model.backbone.grid == (42, 68)
    assert model.backbone.pos_embed.shape == (1, 1 + 42 * 68, width)
    assert list(model.backbone.norm.parameters()) == []
    assert [lateral.conv.in_channels for lateral in model.neck[1].lateral_convs] == [width] * 4
    assert model.neck[1].num_outs == 5 and not any(conv.with_norm for conv in model.neck[1].fpn_convs)
    heads = model.roi_head.bbox_head if 'cascade' in name else [model.roi_head.bbox_head]
    assert len(heads) == (3 if 'cascade' in name else 1)
    stds = [[0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067]]
    for head, wanted in zip(heads, stds, strict=False):
        assert (len(head.shared_convs), len(head.shared_fcs), head.fc_out_channels, head.num_classes) == (4, 1, 1024, 80)
        assert {type(conv.norm).__name__ for conv in head.shared_convs} == {'SyncBatchNorm'}
        assert head.reg_decoded_bbox and not head.reg_class_agnostic and list(head.bbox_coder.stds) == wanted
        assert (type(head.loss_bbox).__name__, head.loss_bbox.loss_weight, head.loss_cls.loss_weight) == ('GIoULoss', 10.0, 1.0)
    masks = model.roi_head.mask_head if 'cascade' in name else [model.roi_head.mask_head]
    assert all(len(head.convs) == 4 and not any(conv.with_norm for conv in head.convs) for head in masks)
    assert isinstance(model.neck[0].scales[0][1], torch.nn.SyncBatchNorm)


@pytest.mark.parametrize('name', RECIPES)
def test_learning_rate_and_decay_of_every_parameter(without_storage, name):
    """Section 8 of the reference: layer i of L has the rate to the power of L + 1 - i; vectors, and nothing else, are not decayed."""
    cfg, model = without_storage(name)
    lr, rate, depth = cfg.optim_wrapper.optimizer.lr, PROTOCOL[size_of(name)][1], len(model.backbone.blocks)
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
        assert got_lr == pytest.approx(lr * rate**power), parameter
        assert got_decay == (0.0 if model.get_parameter(parameter).ndim == 1 else 0.05), parameter
    box_head = 'roi_head.bbox_head.0' if 'cascade' in name else 'roi_head.bbox_head'
    # The cls token is decayed here, and the pyramid, which the authors count to the encoder, has the full learning rate.
    table = {
        'backbone.cls_token': (lr * rate ** (depth + 1), 0.05),
        'backbone.patch_embed.proj.weight': (lr * rate ** (depth + 1), 0.05),
        'backbone.patch_embed.proj.bias': (lr * rate ** (depth + 1), 0.0),
        'backbone.blocks.0.attn.qkv.weight': (lr * rate**depth, 0.05),
        'backbone.blocks.0.attn.q_bias': (lr * rate**depth, 0.0),
        'backbone.blocks.0.gamma_1': (lr * rate**depth, 0.0),
        f'backbone.blocks.{depth - 1}.norm2.weight': (lr * rate, 0.0),
        'neck.0.scales.0.0.weight': (lr, 0.05),
        'neck.0.scales.0.1.weight': (lr, 0.0),
        'neck.1.fpn_convs.0.conv.weight': (lr, 0.05),
        'rpn_head.rpn_conv.weight': (lr, 0.05),
        f'{box_head}.fc_cls.weight': (lr, 0.05),
        f'{box_head}.fc_cls.bias': (lr, 0.0),
    }
    assert {name: (pytest.approx(found[name][0]), found[name][1]) for name in table} == table
    assert 'backbone.pos_embed' not in found


def test_learning_rate_of_every_iteration(recipe):
    """500 iterations of warm-up from a thousandth, then the full rate, a tenth after 9 epochs and a hundredth after 11."""
    length = 600  # iterations an epoch
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    by_iteration, by_epoch = (PARAM_SCHEDULERS.build(dict(settings, optimizer=optimizer)) for settings in recipe(BASE).param_scheduler)
    optimizer.step()
    for epoch in range(12):
        for iteration in range(epoch * length, (epoch + 1) * length):
            wanted = 3e-4 * min(0.001 + 0.999 * iteration / 500, 1) * (1 if epoch < 9 else 0.1 if epoch < 11 else 0.01)
            assert optimizer.param_groups[0]['lr'] == pytest.approx(wanted), (epoch, iteration)
            by_iteration.step()
        by_epoch.step()


def plain(value):
    return value.to_dict() if hasattr(value, 'to_dict') else value


def test_what_is_not_the_papers_is_mmdets(recipe):
    """Anchors, samplers, assigners, losses of the mask, thresholds, and the test pipeline are those of mmdet's own Mask R-CNN."""
    folder = Path(mmdet.__file__).parent / '.mim/configs/_base_'
    for name, theirs in ((BASE, 'mask-rcnn_r50_fpn'), (CASCADE_BASE, 'cascade-mask-rcnn_r50_fpn')):
        ours, model = recipe(name).model, Config.fromfile(folder / f'models/{theirs}.py').model
        assert plain(ours.data_preprocessor) == dict(plain(model.data_preprocessor), non_blocking=True)
        assert plain(ours.test_cfg) == plain(model.test_cfg)
        assert plain(ours.train_cfg.rcnn if 'cascade' not in name else ours.train_cfg.rcnn[2]) == plain(
            model.train_cfg.rcnn if 'cascade' not in name else model.train_cfg.rcnn[2]
        )
        assert plain(ours.train_cfg.rpn_proposal) == plain(model.train_cfg.rpn_proposal)
        assert plain(ours.train_cfg.rpn) == dict(plain(model.train_cfg.rpn), allowed_border=-1)
        assert plain(ours.rpn_head.anchor_generator) == plain(model.rpn_head.anchor_generator)
        assert plain(ours.roi_head.mask_head) == plain(model.roi_head.mask_head)
        assert ours.type == model.type and ours.roi_head.type == model.roi_head.type
    ours, data = recipe(BASE), Config.fromfile(folder / 'datasets/coco_instance.py')
    backend = [{k: v for k, v in step.items() if k != 'backend_args'} for step in data.test_pipeline]
    assert [dict(step) for step in ours.test_dataloader.dataset.pipeline] == backend
    assert plain(ours.train_dataloader.dataset.filter_cfg) == plain(data.train_dataloader.dataset.filter_cfg)


def test_scales_of_training(recipe):
    """Those of DETR: the short side out of 480, 512 ... 800; or first 400 to 600 and a crop of 384 to 600."""
    choice = next(step for step in recipe(BASE).train_dataloader.dataset.pipeline if step.type == 'RandomChoice').transforms
    sides = [(1333, side) for side in (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)]
    whole, (before, crop, after) = choice
    assert [step.scales for step in whole] == [sides] and after.scales == sides
    assert before.scales == [(1333, 400), (1333, 500), (1333, 600)]
    assert (crop.crop_type, crop.crop_size) == ('absolute_range', (384, 600))


def test_digits_share_the_structure(recipe):
    """The small recipe is the real one made small: the same parts, in the same order."""
    ours, real = recipe('digits/mask_rcnn_vit-digits').model, recipe(BASE).model
    for part in ('backbone', 'rpn_head', 'roi_head', 'data_preprocessor'):
        assert ours[part].type == real[part].type
    assert [step.type for step in ours.neck] == [step.type for step in real.neck]
    assert ours.roi_head.mask_head.type == real.roi_head.mask_head.type and 'init_cfg' not in ours.backbone


def test_example_for_own_data(repository, tmp_path):
    """The config in docs/detection.md for data of one's own."""
    code = re.search(r'```python\n(.*?)```', (repository / 'docs/detection.md').read_text(), re.DOTALL)[1]
    path = tmp_path / 'pets.py'
    path.write_text(code.replace("'configs/", f"'{repository}/configs/"))
    cfg = load_config(path)
    real = load_config(repository / 'configs' / f'{BASE}.py')
    for loader, name in (('train_dataloader', 'train'), ('val_dataloader', 'val'), ('test_dataloader', 'val')):
        dataset = cfg[loader].dataset
        assert (dataset.data_root, dataset.ann_file, dataset.data_prefix) == ('data/pets/', f'{name}.json', dict(img='images/'))
        assert dataset.metainfo.classes == ('cat', 'dog') and dataset.pipeline == real[loader].dataset.pipeline
    assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file == 'data/pets/val.json'
    assert cfg.model.roi_head.bbox_head.num_classes == cfg.model.roi_head.mask_head.num_classes == 2
    assert cfg.model.backbone == real.model.backbone and cfg.optim_wrapper == real.optim_wrapper
