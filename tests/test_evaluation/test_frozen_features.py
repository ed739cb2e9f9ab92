"""Frozen means frozen, with and without cached features; and caching changes nothing but the time."""

import pytest
import torch
from mmengine.dataset import Compose
from mmengine.hooks import Hook

from mmcae.models import CAEViT
from mmcae.registry import TRANSFORMS
from mmcae.utils.errors import ConfigError


class Watch(Hook):
    """Remember how the encoder was run during training."""

    def before_train(self, runner):
        self.modes, self.gradients = [], []
        runner.model.backbone.register_forward_hook(self.look)

    def look(self, backbone, inputs, outputs):
        self.modes.append(any(module.training for module in backbone.modules() if not list(module.children())))
        self.gradients.append(any(output.requires_grad for output in outputs))


@pytest.mark.parametrize('protocol', ['linear', 'attentive'])
@pytest.mark.parametrize('loop', ['mmcae.FrozenFeatureTrainLoop', 'IterBasedTrainLoop'])
def test_nothing_of_the_encoder_changes_or_costs_memory(make_runner, options, protocol, loop):
    runner = make_runner(protocol, [*options(protocol), f'train_cfg.type={loop}', 'model.backbone.drop_path_rate=0.5'])
    watch = Watch()
    runner.register_hook(watch)
    runner.train()
    model = runner.model
    fresh = CAEViT(**{key: value for key, value in runner.cfg.model.backbone.items() if key != 'type'})
    fresh.init_weights()
    assert all(torch.equal(value, fresh.state_dict()[key]) for key, value in model.backbone.state_dict().items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.backbone.parameters())
    assert watch.modes and not any(watch.modes) and not any(watch.gradients)
    trained = {id(parameter) for parameter in model.head.parameters()}
    state = runner.optim_wrapper.optimizer.state
    assert state and {id(parameter) for parameter in state} <= trained


def trained(make_runner, options, loop, protocol):
    runner = make_runner(protocol, [*options(protocol, max_iters=6), f'train_cfg.type={loop}'])
    runner.train()
    return runner.model.state_dict()


@pytest.mark.parametrize('protocol', ['linear', 'attentive'])
def test_cached_features_give_the_same_classifier(make_runner, options, protocol):
    cached = trained(make_runner, options, 'mmcae.FrozenFeatureTrainLoop', protocol)
    plain = trained(make_runner, options, 'IterBasedTrainLoop', protocol)
    assert cached.keys() == plain.keys()
    for name in cached:
        torch.testing.assert_close(cached[name], plain[name], rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f'{name}: {text}')


def test_random_images_are_refused(make_runner, options):
    runner = make_runner('linear', options('linear'))
    steps = (dict(type='LoadImageFromFile'), dict(type='RandomResizedCrop', scale=32), dict(type='PackInputs'))
    pipeline = Compose([TRANSFORMS.build(dict(step, type=f'mmpretrain.{step["type"]}')) for step in steps])
    runner.train_dataloader.dataset.pipeline = pipeline
    with pytest.raises(ConfigError, match='another image of it each time'):
        runner.train()


def test_a_trainable_encoder_is_refused(make_runner, options):
    runner = make_runner('linear', [*options('linear'), 'model.backbone.frozen_stages=3'])
    with pytest.raises(ConfigError, match='frozen_stages to the number of blocks'):
        runner.train()


def test_mixing_images_is_refused(make_runner, options):
    runner = make_runner('linear', [*options('linear'), 'model.train_cfg.augments.type=Mixup', 'model.train_cfg.augments.alpha=0.8'])
    with pytest.raises(ConfigError, match='cannot mix images'):
        runner.train()


def test_several_processes_are_refused(make_runner, options, monkeypatch):
    runner = make_runner('linear', options('linear'))
    monkeypatch.setattr('mmcae.evaluation.frozen_features.get_world_size', lambda: 2)
    with pytest.raises(ConfigError, match='works in one process'):
        runner.train()
