"""Configs for encoders of any size: they load, their models take the weights, their pipelines show the encoder's view."""

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from PIL import Image

from mmcae import compat
from mmcae.apis import View, load_encoder
from mmcae.checkpoints import ViewSpec, load_encoder_weights, metadata, write_state_dict
from mmcae.commands import protocols as core
from mmcae.models import CAEViT, TimmEncoder
from mmcae.registry import MODELS, TRANSFORMS
from mmcae.utils.configs.loading import load_config
from mmcae.utils.errors import ConfigError
from mmcae.utils.packaged import find_config

DINO, SIGLIP = 'vit_small_patch14_reg4_dinov2', 'vit_base_patch16_siglip_224'  # four registers; no cls token
TINY = dict(depth=2, embed_dim=24, num_heads=2)
ENCODERS = {
    'registers': (dict(model_name=DINO, img_size=56, **TINY), ViewSpec(size=(56, 56), crop_pct=1.0)),
    'no cls token': (dict(model_name=SIGLIP, img_size=64, **TINY), None),
    'narrow': (dict(arch=dict(embed_dims=24, num_layers=2, num_heads=3), img_size=32, patch_size=8), None),
    'no square': (
        dict(arch=dict(embed_dims=24, num_layers=3, num_heads=2, feedforward_channels=50), img_size=(48, 80)),
        ViewSpec(mean=(90.0, 100.0, 110.0), std=(50.0,), size=(48, 80), interpolation='bilinear', crop_pct=0.9),
    ),
    'plain': (dict(arch=dict(embed_dims=24, num_layers=2, num_heads=2), img_size=96, layer_scale_init_value=0), ViewSpec(size=(96, 96))),
    'relative': (dict(arch=dict(embed_dims=24, num_layers=2, num_heads=2), img_size=64, use_rel_pos_bias=True), None),
    'windows': (dict(arch=dict(embed_dims=24, num_layers=3, num_heads=2), img_size=64, window_size=2, global_blocks=(2,)), None),
}


@pytest.fixture(params=ENCODERS)
def encoder(request, tmp_path):
    """The file of an encoder, and its spec."""
    settings, view = ENCODERS[request.param]
    model = (TimmEncoder if 'model_name' in settings else CAEViT)(**settings)
    spec = model.spec.replaced(view=view)
    write_state_dict(tmp_path / 'encoder.pth', model.state_dict(), metadata(spec))
    return str(tmp_path / 'encoder.pth'), spec


def configs(family, checkpoint, spec, tmp_path, names=None):
    """The loaded configs by protocol."""
    protocols = core.choose(core.protocols_for(family, spec), names)
    paths = core.write_configs(tmp_path, protocols, spec, checkpoint)
    return {protocol.name: (load_config(paths[protocol.name]), load_config(find_config(protocol.config))) for protocol in protocols}


def build(step, scope='mmpretrain'):
    compat.import_mmpretrain()
    with TRANSFORMS.switch_scope_and_registry(scope) as registry:
        return registry.build(dict(step))


def shown(pipeline, image, tmp_path):
    """What a pipeline makes of an image, without packing."""
    Image.fromarray(image).save(tmp_path / 'image.png')
    results = dict(img_path=str(tmp_path / 'image.png'))
    for step in pipeline[:-1]:
        results = build(step)(results)
    return results['img']


@pytest.mark.parametrize('family', ['digits', 'imagenet'])
def test_models_take_the_weights(family, encoder, tmp_path):
    checkpoint, spec = encoder
    size = (spec.view or ViewSpec(size=spec.img_size)).size
    for name, (cfg, recipe) in configs(family, checkpoint, spec, tmp_path).items():
        backbone = MODELS.build(dict(cfg.model.backbone, init_cfg=None))
        allowed = (recipe.model.backbone.get('init_cfg') or {}).get('allow_missing', ())
        load_encoder_weights(backbone, checkpoint, allow_missing=allowed)
        wanted = recipe.model.backbone.get('out_type', 'cls_token')
        assert backbone.out_type == (wanted if backbone.has_cls or wanted != 'cls_token' else 'avg_featmap')
        assert cfg.model.backbone.get('drop_path_rate') == recipe.model.backbone.get('drop_path_rate')
        assert tuple(n * p for n, p in zip(backbone.grid, backbone.patch_size, strict=True)) == size
        frozen = recipe.model.backbone.get('frozen_stages', -1) > 0
        assert all(not parameter.requires_grad for parameter in backbone.parameters()) or not frozen
        if cfg.model.get('head'):
            output = backbone(torch.zeros(2, 3, *size))[-1]
            assert output.shape[-1] == cfg.model.head.in_channels == spec.embed_dims, name
        if spec.view:
            assert list(cfg.data_preprocessor.mean) == list(spec.view.mean) and list(cfg.data_preprocessor.std) == list(spec.view.std)


def test_segmentation_and_detection_on_small_scenes(encoder, tmp_path):
    """Models of the encoder's width and patches, with its weights, that read a scene after padding."""
    checkpoint, spec = encoder
    patch = spec.patch_size[0]
    for name, (cfg, _) in configs('digits', checkpoint, spec, tmp_path, ['upernet', 'mask_rcnn']).items():
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            model = MODELS.build(cfg.model).eval()
        model.backbone.init_weights()
        reference = load_encoder(checkpoint).state_dict()
        assert all(torch.equal(value, reference[key]) for key, value in model.backbone.state_dict().items()), name
        preprocessor = cfg.model.data_preprocessor
        side = preprocessor.size[0] if name == 'upernet' else preprocessor.pad_size_divisor * 2
        maps = model.extract_feat(torch.zeros(1, 3, side, side))
        strides = [side / one.shape[-1] for one in maps]
        if name == 'upernet':
            assert side >= 64 and side % (2 * patch) == 0 == preprocessor.test_cfg.size_divisor % (2 * patch)
            assert strides == [patch / 2, patch / 2, patch, patch * 2]
            assert model.decode_head(maps).shape[1] == 11
        else:
            assert strides == [stride[0] for stride in model.rpn_head.prior_generator.strides] == [patch / 2, patch, patch * 2]
            assert model.roi_head.bbox_roi_extractor.featmap_strides == [patch / 2]
        if spec.view:
            assert list(preprocessor.mean) == list(spec.view.mean)


@pytest.mark.parametrize('family', ['digits', 'fashion'])
def test_segmentation_probes_are_of_the_encoder(family, tmp_path):
    view = ViewSpec(mean=(90.0, 100.0, 110.0), std=(50.0,), size=(56, 56))
    spec = CAEViT(dict(embed_dims=24, num_layers=2, num_heads=2), img_size=56, patch_size=14).spec.replaced(view=view)
    for name, (cfg, _) in configs(family, 'a.pth', spec, tmp_path, ['knn_segmentation', 'linear_segmentation']).items():
        assert MODELS.build(cfg.model.backbone).spec.replaced(view=view) == spec and cfg.data_preprocessor.mean == list(view.mean)
        assert cfg.test_cfg.probe == name.removesuffix('_segmentation')
        loaders = (cfg.test_dataloader, cfg.test_cfg.bank_dataloader, cfg.test_cfg.val_dataloader)
        roots = {str(loader.dataset.data_root) for loader in loaders}
        assert roots == {dict(digits='data/digits/', fashion='data/fashion_scenes/')[family]}
        assert [loader.dataset.data_prefix.img_path for loader in loaders] == [f'scenes64/{split}' for split in ('test', 'train', 'val')]


@pytest.mark.parametrize('family', ['digits', 'imagenet'])
def test_pipelines_show_the_view(family, encoder, tmp_path):
    checkpoint, spec = encoder
    view = spec.view or ViewSpec(size=spec.img_size)
    image = np.random.default_rng(0).integers(0, 256, (100, 140, 3), dtype=np.uint8)
    crop = 1.0 if family == 'digits' else view.crop_pct
    expected = View(view.size, crop=crop, interpolation=view.interpolation).cut(image)
    for name, (cfg, _) in configs(family, checkpoint, spec, tmp_path).items():
        if family == 'imagenet' or view.size != (32, 32):
            pixels = shown(cfg.test_dataloader.dataset.pipeline, image, tmp_path)
            assert np.array_equal(pixels[..., ::-1], expected), name
        if cfg.get('train_dataloader') and family == 'imagenet':
            dataset = cfg.train_dataloader.dataset
            assert shown((dataset.get('dataset') or dataset).pipeline, image, tmp_path).shape[:2] == view.size, name


def test_a_recipe_for_its_own_encoder_keeps_its_pipelines(tmp_path):
    checkpoint, spec = core.prepare_encoder('random', 'digits', tmp_path, seed=0)
    for name, (cfg, recipe) in configs('digits', checkpoint, spec, tmp_path).items():
        cfg, recipe = cfg.to_dict(), recipe.to_dict()
        assert {key: value for key, value in cfg.items() if key != 'model'} == {key: recipe[key] for key in recipe if key != 'model'}, name


def test_grey_images(tmp_path):
    model = CAEViT(dict(embed_dims=24, num_layers=2, num_heads=3), img_size=32, patch_size=8, in_channels=1)
    write_state_dict(tmp_path / 'grey.pth', model.state_dict(), metadata(model.spec))
    with pytest.raises(ConfigError, match='nothing tells how images of 1 channels are normalised'):
        configs('digits', 'grey.pth', model.spec, tmp_path)
    spec = model.spec.replaced(view=ViewSpec(mean=(127.5,), std=(60.0,), size=(32, 32)))
    with pytest.raises(ConfigError, match='reads 1 channels'):
        configs('digits', 'grey.pth', spec, tmp_path, ['upernet'])
    cfg, _ = configs('digits', 'grey.pth', spec, tmp_path)['linear']
    assert cfg.data_preprocessor.mean == [127.5] and not cfg.data_preprocessor.to_rgb
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert shown(cfg.test_dataloader.dataset.pipeline, image, tmp_path).shape == (32, 32, 1)
    with pytest.raises(ConfigError, match='works on RGB'):
        configs('imagenet', 'grey.pth', spec, tmp_path)
