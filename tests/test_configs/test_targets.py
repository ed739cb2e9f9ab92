"""Choosing what CAE predicts is one line of a recipe: decoder, second view and normalisation follow."""

import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from mmpretrain.models.selfsup.cae import DALLEEncoder
from mmpretrain.structures import DataSample
from safetensors.torch import save_file

import mmcae.datasets  # noqa: F401
from mmcae.models import CAE, CAEv2, DiscreteVAE
from mmcae.registry import MODELS
from mmcae.utils.configs.loading import load_config

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
RECIPES = ('cae/cae_vit-base-p16_32xb64-amp-coslr-300e_in1k.py', 'custom/cae_vit-base_continued.py')
# What the target is, outputs of the decoder, side of the second view.
TARGETS = {
    'dalle': ('DALLETokenizer', 24, 112),
    'dvae': ('DiscreteVAE', 12, 112),
    'pixels': ('PixelTargets', 768, 224),
    'teacher': ('Teacher', 384, None),
}


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """Files of weights for each kind of target, small where the kind can be."""
    folder = tmp_path_factory.mktemp('weights')
    torch.save(DALLEEncoder(n_hid=8, n_blk_per_group=1, vocab_size=24).state_dict(), folder / 'dalle.pth')
    vae = DiscreteVAE(vocab_size=12, channels=(4, 8, 8), num_blocks=1, code_dim=6)
    vae.training_loss(torch.rand(2, 3, 32, 32))
    torch.save(dict(state_dict=vae.state_dict()), folder / 'dvae.pth')
    save_file(timm.create_model('vit_small_patch16_224', depth=1).state_dict(), folder / 'teacher.safetensors')
    return folder


@pytest.mark.parametrize('recipe', RECIPES)
@pytest.mark.parametrize('target', TARGETS)
def test_one_line(recipe, target, weights, image_folder, tmp_path):
    text = (CONFIGS / recipe).read_text()
    changed, count = re.subn(r"'\.\./_base_/targets/\w+\.py'", f"'../_base_/targets/{target}.py'", text)
    assert count == 1
    (tmp_path / 'recipe.py').write_text(changed.replace("'../_base_/", f"'{CONFIGS}/_base_/"))
    cfg = load_config(tmp_path / 'recipe.py')
    cfg.model.backbone.arch = small = dict(embed_dims=16, num_layers=1, num_heads=2)
    cfg.model.regressor.update(in_dims=16, **small)
    cfg.model.decoder.update(small)
    cfg.model.init_cfg = None
    if target == 'dalle':
        cfg.model.decoder.num_outputs = 24  # a small vocabulary; the recipe has DALL-E's
    if target == 'teacher':
        cfg.model.target_generator.model.depth = 1
    for path in weights.glob(f'{target}.*'):
        cfg.model.target_generator.checkpoint = str(path)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(dict(cfg.model, data_preprocessor=cfg.data_preprocessor))
        sample = Compose(cfg.train_dataloader.dataset.pipeline)(dict(img_path=str(next(image_folder(size=(240, 230)).rglob('*.png')))))
    name, outputs, side = TARGETS[target]
    assert isinstance(model, CAE) and type(model.target_generator).__name__ == name
    assert model.decoder.head.out_features == outputs
    assert [tuple(view.shape) for view in sample['inputs']] == [(3, 224, 224)] + [(3, side, side)] * (side is not None)
    model.check_sample(sample['inputs'], sample['data_samples'])
    data = dict(inputs=[view[None] for view in sample['inputs']], data_samples=[sample['data_samples']])
    losses = model(**model.data_preprocessor(data), mode='loss')
    assert losses['loss_main'].isfinite() and ('mlm_acc' in losses) == (target in ('dalle', 'dvae'))


@pytest.mark.parametrize(('target', 'outputs'), [('dvae', 12), ('pixels', 192), ('teacher', 96)])
def test_digits(target, outputs, weights):
    """The small recipes that docs/tokenizers.md compares."""
    cfg = load_config(CONFIGS / f'digits/cae_{target}_vit-digits.py')
    if target != 'pixels':
        cfg.model.target_generator.checkpoint = str(weights / 'dvae.pth') if target == 'dvae' else None
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(dict(cfg.model, data_preprocessor=cfg.data_preprocessor))
    assert type(model.target_generator).__name__ == TARGETS[target][0] and model.decoder.head.out_features == outputs
    model.check_sample([torch.zeros(3, 32, 32)] * 2, DataSample().set_mask(torch.eye(4, dtype=torch.bool)))


@pytest.mark.parametrize('name', ['digits', 'fashion'])
def test_cae_v2_of_the_small_data_sets(name):
    """With the encoder of their CAE as teacher; then with complementary masks."""
    for changes in ([], ['complementary=True', 'mask_ratio=0.5', "supervise=['masked']"]):
        cfg = load_config(CONFIGS / f'{name}/cae_v2_vit-{name}.py', changes)
        assert cfg.model.target_generator.checkpoint == f'work_dirs/cae_vit-{name}/iter_1600.pth'
        cfg.model.target_generator.checkpoint = None
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            model = MODELS.build(dict(cfg.model, data_preprocessor=cfg.data_preprocessor))
            sample = Compose(cfg.train_pipeline[1:])(dict(img=np.full((40, 40, 3), 7, np.uint8)))
        assert isinstance(model, CAEv2) and model.complementary == bool(changes) and model.target_generator.loss_kind == 'cosine'
        model.check_sample(sample['inputs'], sample['data_samples'])
        data = dict(inputs=[view[None] for view in sample['inputs']], data_samples=[sample['data_samples']])
        assert model(**model.data_preprocessor(data), mode='loss')['loss_main'].isfinite()
