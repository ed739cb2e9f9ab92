"""Every method with the kinds of ViTs that timm has: a step at two image sizes, or a message that names the culprit and the remedy."""

import pytest
import torch
from mmengine.logging import MMLogger
from mmpretrain.structures import DataSample

from mmcae.apis import load_encoder
from mmcae.checkpoints import metadata_of
from mmcae.registry import MODELS
from mmcae.utils.errors import ConfigError

WIDTH = 32
SIZES = dict(depth=2, embed_dim=WIDTH, num_heads=2)
KINDS = {
    'rotary': ('vit_small_patch16_dinov3', 64, {}),
    'rotary, SwiGLU, recomputed': ('eva02_base_patch14_224', 56, dict(global_pool='token', with_cp=True, drop_path_rate=0.1)),
    'learned rotary': ('vit_small_patch16_rope_mixed_224', 64, {}),
    'registers, patch 14, frozen': ('vit_small_patch14_reg4_dinov2', 56, dict(frozen_stages=1)),
    'packed SwiGLU': ('vit_giant_patch14_dinov2', 56, {}),
    'no cls': ('vit_base_patch16_siglip_gap_224', 64, {}),
    'no cls, registers': ('vit_base_patch16_reg4_gap_256', 64, dict(global_pool='')),
    'norm in front': ('vit_base_patch16_clip_quickgelu_224', 64, {}),
    'norm behind': ('eva02_enormous_patch14_clip_224', 56, {}),
    'two prefix tokens': ('deit_small_distilled_patch16_224', 64, {}),
}
PIXELS = 'mmcae.PixelTargets'
REGRESSOR = dict(type='mmcae.LatentContextualRegressor', in_dims=WIDTH, embed_dims=WIDTH, num_layers=1, num_heads=2)
CAE_DECODER = dict(type='mmcae.CAEDecoder', embed_dims=WIDTH, num_layers=1, num_heads=2)
MAE_DECODER = dict(type='mmcae.MAEDecoder', in_dims=WIDTH, embed_dims=WIDTH, num_layers=1, num_heads=4)
PREDICTOR = dict(type='mmcae.JEPAPredictor', in_dims=WIDTH, embed_dims=24, num_layers=1, num_heads=4)
PREPROCESSOR = dict(type='SelfSupDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])


def methods(encoder, patch):
    pixels, teacher = dict(type=PIXELS, patch_size=patch), dict(type='mmcae.Teacher', model=dict(encoder))
    return {
        'CAE': dict(regressor=REGRESSOR, decoder=CAE_DECODER, target_generator=teacher),
        'CAEv2': dict(regressor=REGRESSOR, target_generator=teacher | dict(loss='cosine'), complementary=True),
        'MAE': dict(decoder=MAE_DECODER, target_generator=pixels),
        'BEiT': dict(target_generator=pixels),
        'SimMIM': dict(target_generator=pixels),
        'Data2Vec': dict(top_blocks=2),
        'IJEPA': dict(predictor=PREDICTOR),
    }


def step(model, size):
    """The gradients of one step on images of `size` pixels."""
    rows, columns = grid = model.backbone.grid_of((size, size))
    mask = torch.stack([torch.randperm(rows * columns) < rows * columns // 2 for _ in range(2)]).view(2, *grid)
    views = [torch.randn(2, 3, size, size) for _ in range(2)]
    model.zero_grad()
    losses = model.loss(views if model.needs_two_views else views[:1], [DataSample(mask=one) for one in mask])
    loss = sum(value for name, value in losses.items() if 'loss' in name)
    loss.backward()
    assert torch.isfinite(loss)
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize('kind', KINDS)
def test_methods_train_all_kinds(kind):
    name, size, settings = KINDS[kind]
    encoder = dict(type='mmcae.TimmEncoder', model_name=name, img_size=size, **SIZES, **settings)
    patch = 14 if 'patch14' in name else 16
    for method, parts in methods(encoder, patch).items():
        if method == 'CAEv2' and 'no cls' in kind:
            with pytest.raises(ConfigError, match=r"has no cls token to compare with: set supervise=\['visible', 'masked'\]"):
                MODELS.build(dict(type='mmcae.CAEv2', backbone=encoder, data_preprocessor=PREPROCESSOR, **parts))
            parts = parts | dict(supervise=['visible', 'masked'])
        model = MODELS.build(dict(type=f'mmcae.{method}', backbone=encoder, data_preprocessor=PREPROCESSOR, **parts)).train()
        model.init_weights()
        for side in (size, size + 2 * patch):
            for parameter, gradient in step(model, side).items():
                assert gradient is not None and torch.isfinite(gradient).all() and gradient.any(), (method, side, parameter)
        again = load_encoder(dict(state_dict=model.state_dict(), meta=metadata_of(model)))
        images = torch.randn(1, 3, size, size)
        with torch.no_grad():
            torch.testing.assert_close(again.encode(images), model.eval().backbone.encode(images))


@torch.no_grad()
def test_predictions_without_a_cls_token():
    """CAE v2 of an encoder without cls: the patches alone, in raster order, whichever way the mask goes."""
    encoder = dict(type='mmcae.TimmEncoder', model_name=KINDS['no cls'][0], img_size=64, **SIZES)
    settings = dict(regressor=REGRESSOR, predictor=dict(num_outputs=5), supervise=['masked'])
    model = MODELS.build(dict(type='mmcae.CAEv2', backbone=encoder, **settings)).eval()
    images, mask = torch.randn(2, 3, 64, 64), torch.stack([torch.randperm(16) < 8 for _ in range(2)])
    found = model.predict(images, mask)
    assert found['prediction'].shape == (2, 16, 5) and found['regressed'].shape == (2, 8, WIDTH)
    for one in range(2):  # a slow reference, patch by patch
        visible, masked = (~mask[one]).nonzero().T, mask[one].nonzero().T
        latents = model.regressor.project(model.backbone.encode(images[one : one + 1], visible))
        wanted = torch.empty(16, 5)
        wanted[visible[0]] = model.predictor(latents)[0]
        positions = model.positions((4, 4))
        wanted[masked[0]] = model.predictor(model.regressor(latents, positions[:, visible[0]], positions[:, masked[0]]))[0]
        torch.testing.assert_close(found['prediction'][one], torch.nn.functional.normalize(wanted, dim=-1))


@pytest.mark.parametrize(
    ('name', 'settings', 'message', 'remedy'),
    [
        ('eva02_small_patch14_224', {}, "global_pool='avg' cannot be pretrained: .* set global_pool='token'", dict(global_pool='token')),
        ('vit_small_patch16_224', dict(fc_norm=True), 'fc_norm=True cannot .* set fc_norm=False', dict(fc_norm=False)),
        ('vit_small_patch16_224', dict(final_norm=False), 'final_norm=False cannot .* set final_norm=True', dict(final_norm=True)),
        ('vit_base_patch16_radio_v3', {}, 'final_norm=False cannot .* set final_norm=True', dict(final_norm=True)),
        ('vit_pe_spatial_small_patch16_512', {}, 'final_norm=False cannot .* set final_norm=True', dict(final_norm=True)),
    ],
)
def test_norms_that_methods_need(name, settings, message, remedy):
    """The remedy that the message names is one."""
    encoder = dict(type='mmcae.TimmEncoder', model_name=name, img_size=112, **SIZES, **settings)
    with pytest.raises(ConfigError, match=message):
        MODELS.build(dict(type='mmcae.Data2Vec', backbone=encoder, top_blocks=1))
    MODELS.build(dict(type='mmcae.Data2Vec', backbone=encoder | remedy, top_blocks=1))


def test_images_that_are_normalised_for_another_encoder(tmp_path, caplog):
    """SigLIP has 0.5 where the recipes have ImageNet's values; the remedy that is named is one."""
    settings = dict(model_name='vit_base_patch16_siglip_224', img_size=64, **SIZES)
    torch.save(MODELS.build(dict(type='mmcae.TimmEncoder', **settings)).vit.state_dict(), tmp_path / 'siglip.pth')
    encoder = dict(type='mmcae.TimmEncoder', init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'siglip.pth')), **settings)
    sentence = 'set data_preprocessor.mean=[127.5,127.5,127.5] data_preprocessor.std=[127.5,127.5,127.5]'
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    for changes, told in ((dict(), True), (dict(mean=[127.5], std=[127.5]), False)):
        caplog.clear()
        model = dict(type='mmcae.Data2Vec', backbone=encoder, top_blocks=1, data_preprocessor=PREPROCESSOR | changes)
        MODELS.build(model).init_weights()
        assert (sentence in caplog.text) is told
    logger.removeHandler(caplog.handler)
