"""Mask R-CNN on ViTs of timm, with patches of 14 and registers and of other kinds: built from its recipe, trained and tested."""

import pytest
import timm
import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope

from mmcae.engine.optimizers import LayerDecayOptimWrapperConstructor
from mmcae.registry import MODELS
from mmcae.utils.configs.loading import load_config
from mmcae.utils.errors import ConfigError

RECIPE = 'configs/mask_rcnn/mask-rcnn_dinov2-vit-small-p14_16xb2-amp-1x_coco.py'
SMALL = dict(depth=4, embed_dim=32, num_heads=2)


OTHERS = {
    'rotary': ('vit_small_patch16_dinov3', 16),
    'learned rotary, patch 14': ('eva02_small_patch14_224', 14),
    'no cls': ('vit_base_patch16_siglip_224', 16),
    'two prefix tokens': ('deit_small_distilled_patch16_224', 16),
    'norm in front, patch 32': ('vit_base_patch32_clip_224', 32),
}


def build(repository, tmp_path, name, *options):
    """The detector of the recipe with another encoder, the released model that it starts from, and the config."""
    torch.manual_seed(0)
    released = timm.create_model(name, **SMALL, img_size=56 if 'patch14' in name else 64, num_classes=0)
    torch.save(released.state_dict(), tmp_path / 'released.pth')
    options = [
        f'checkpoint={tmp_path}/released.pth',
        'width=32',
        'num_classes=2',
        'model.backbone.out_indices=(0,1,2,3)',
        f'model.backbone.img_size={released.patch_embed.img_size[0]}',
        f'model.backbone.model_name={name}',
        *options,
    ]
    options += [f'model.backbone.{name}={value}' for name, value in SMALL.items()]
    cfg = load_config(repository / RECIPE, options)
    cfg.model.neck[1].out_channels = 16
    cfg.model.rpn_head.update(in_channels=16, feat_channels=16)
    heads = cfg.model.roi_head
    heads.bbox_head.update(in_channels=16, conv_out_channels=16, fc_out_channels=32)
    heads.mask_head.update(in_channels=16, conv_out_channels=16)
    heads.bbox_roi_extractor.out_channels = heads.mask_roi_extractor.out_channels = 16
    cfg.model.train_cfg.rpn_proposal.max_per_img = cfg.model.test_cfg.rpn.max_per_img = 50
    init_default_scope('mmdet')
    model = MODELS.build(cfg.model)
    model.init_weights()
    return revert_sync_batchnorm(model), released, cfg


@pytest.fixture
def detector(repository, tmp_path):
    return build(repository, tmp_path, 'vit_small_patch14_reg4_dinov2')


def test_maps_have_the_strides_of_the_heads(detector):
    model, released, _ = detector
    assert torch.equal(model.backbone.vit.pos_embed, released.pos_embed)
    maps = model.extract_feat(torch.randn(1, 3, 84, 112))
    assert [m.shape[-2:] for m in maps] == [(24, 32), (12, 16), (6, 8), (3, 4), (2, 2)]
    assert [round(112 / m.shape[-1], 1) for m in maps[:4]] == [3.5, 7, 14, 28]


def test_train_then_test(detector, batch, losses):
    """Images of odd sizes are padded to multiples of 28; layer-wise rates; the loss falls; boxes lie in the image."""
    model, _, cfg = detector
    wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=2e-3))
    optimizer = LayerDecayOptimWrapperConstructor(wrapper, dict(layer_decay_rate=0.75))(model)
    assert len({group['lr'] for group in optimizer.param_groups}) == 6
    assert cfg.optim_wrapper.paramwise_cfg.layer_decay_rate == 0.75
    found = []
    for _ in range(8):
        torch.manual_seed(1)
        loss, terms = losses(model.train(), batch((70, 100), (84, 90)))
        assert {'loss_rpn_cls', 'loss_bbox', 'loss_mask'} <= set(terms)
        found.append(loss.item())
        optimizer.update_params(loss)
    assert found[-1] < 0.8 * found[0], found
    with torch.no_grad():
        results = model.eval().test_step(batch((70, 100)))
    boxes = results[0].pred_instances.bboxes
    assert boxes.shape[1] == 4 and (boxes[:, 2] <= 100).all() and (boxes[:, 3] <= 70).all()


@pytest.mark.parametrize('kind', OTHERS)
def test_other_kinds_of_vits(kind, repository, tmp_path, batch, losses):
    """By the names and numbers that the recipe leaves open; images of odd sizes."""
    name, patch = OTHERS[kind]
    model, _, cfg = build(repository, tmp_path, name, f'patch_size={patch}')
    assert cfg.model.data_preprocessor.pad_size_divisor == 2 * patch
    for _ in range(2):
        loss, _ = losses(model.train(), batch((70, 99), (83, 90)))
        loss.backward()
        assert loss.isfinite()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    with torch.no_grad():
        (result,) = model.eval().test_step(batch((71, 101)))
    assert result.pred_instances.masks.shape[1:] == (71, 101)


def test_strides_of_other_patches(repository, tmp_path, batch, losses):
    """They would put every box elsewhere, without an error of mmdet's."""
    model, _, _ = build(repository, tmp_path, 'vit_small_patch16_224', 'model.data_preprocessor.pad_size_divisor=32')
    with pytest.raises(ConfigError, match=r'first map has a stride of 4x4 pixels, .*anchor_generator.strides begins with 3.5: set strides'):
        losses(model.train(), batch((70, 99)))
