"""The recipes that go on from a released encoder, trained for some steps on a small folder, and what comes out of them."""

import pytest
import timm
import torch
from mmengine.runner import Runner

from mmcae.apis import load_encoder
from mmcae.checkpoints.formats import export_encoder
from mmcae.models import TimmEncoder
from mmcae.utils.configs.loading import load_config

RECIPES = ('cae_v2_dinov2-vit-small_folder', 'cae_dinov2-vit-small_folder', 'distil_dinov2-vit-small_folder')
NAME = 'vit_small_patch14_reg4_dinov2'
SMALL = dict(depth=3, embed_dim=32, num_heads=2, img_size=56)


def released(path, seed, **settings):
    """A file as timm writes it, with random weights."""
    torch.manual_seed(seed)
    model = timm.create_model(NAME, num_classes=0, **{**SMALL, **settings})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture
def train(repository, image_folder, tmp_path):
    """Train a recipe for two epochs of two steps; returns the path of the checkpoint, and of the file that the encoder started from."""

    def run(recipe, **changes):
        start = released(tmp_path / 'released.pth', 0)
        options = {
            'data_root': image_folder(size=(70, 80)),
            'image_size': 56,
            'grid': 4,
            'embed_dims': 32,
            'max_epochs': 2,
            'base_lr': 1e-2,
            'batch_size': 4,
            'num_workers': 0,
            'train_dataloader.pin_memory': False,
            'param_scheduler.0.warmup': 1,
            'model.regressor.num_heads': 2,
            **changes,
        }
        if 'distil' in recipe:
            teacher = dict(SMALL, embed_dim=48, depth=4)
            options |= {f'teacher.{name}': value for name, value in teacher.items()} | {
                f'student.{name}': value for name, value in SMALL.items()
            }
            options['teacher.model_name'] = NAME
            options |= dict(teacher_checkpoint=released(tmp_path / 'teacher.pth', 1, **teacher), student_checkpoint=start)
        else:
            options |= {f'encoder.{name}': value for name, value in SMALL.items()} | dict(checkpoint=start)
            options.setdefault('frozen_stages', 1)
        if recipe.startswith('cae_dinov2'):
            options['model.decoder.num_heads'] = 2
        cfg = load_config(repository / f'configs/adapt/{recipe}.py', [f'{key}={value}' for key, value in options.items()])
        cfg.work_dir = str(tmp_path / 'run')
        Runner.from_cfg(cfg).train()
        return tmp_path / 'run/epoch_2.pth', start

    return run


def changed(path, start):
    """The encoder of a checkpoint, and which of its parameters differ from those that it started from."""
    encoder, before = load_encoder(path), load_encoder(start, num_heads=2).state_dict()
    after = encoder.state_dict()
    assert set(after) == set(before)
    return encoder, {key for key, value in after.items() if not torch.equal(value, before[key])}


@pytest.mark.parametrize('recipe', RECIPES)
def test_recipes_train_and_the_encoder_goes_back(recipe, train, tmp_path):
    path, start = train(recipe)
    encoder, learnt = changed(path, start)
    assert isinstance(encoder, TimmEncoder) and encoder.spec.origin.method == ('CAE' if recipe.startswith('cae_dinov2') else 'CAEv2')
    layers = {encoder.get_layer_depth(name)[0] for name in learnt}
    assert layers == ({0, 1, 2, 3, 4} if 'distil' in recipe else {2, 3, 4})  # the embeddings and the first block are frozen
    export_encoder(encoder, tmp_path / 'timm', 'timm')
    model = timm.create_model(f'local-dir:{tmp_path}/timm', pretrained=True).eval()
    images = torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(images), encoder.encode(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('recipe', RECIPES[:2])
def test_recipes_with_lora(recipe, train):
    """The updates alone are trained, and lie in the weights of what is read."""
    path, start = train(recipe, lora='dict(rank=4, alpha=8)', frozen_stages=1)
    state = torch.load(path, weights_only=False)['state_dict']
    assert not any('blocks.0' in key and 'parametrizations' in key for key in state if key.startswith('backbone.'))
    assert state['backbone.vit.blocks.1.attn.qkv.parametrizations.weight.0.up'].any()
    _, learnt = changed(path, start)
    assert learnt == {f'vit.blocks.{block}.attn.{layer}.weight' for block in (1, 2) for layer in ('qkv', 'proj')}


def test_learning_rates_fall_towards_the_first_layers(repository, tmp_path):
    cfg = load_config(
        repository / f'configs/adapt/{RECIPES[0]}.py', ['layer_decay=0.5', 'frozen_stages=-1', f'checkpoint={tmp_path}/x.pth']
    )
    assert cfg.optim_wrapper.paramwise_cfg == dict(layer_decay_rate=0.5)
    assert cfg.model.backbone.frozen_stages == -1


@pytest.mark.parametrize('recipe', RECIPES)
def test_a_single_epoch_has_no_warmup(repository, recipe):
    cfg = load_config(repository / f'configs/adapt/{recipe}.py', ['max_epochs=1'])
    assert (cfg.param_scheduler[0].warmup, cfg.param_scheduler[0].end) == (0, 1)
