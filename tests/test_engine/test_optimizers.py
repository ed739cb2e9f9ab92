"""Which learning rate and weight decay each parameter gets, against a slow table by name."""

import copy

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

from mmcae.models import CAEViT
from mmcae.utils.errors import ConfigError


def settings_of(model, **paramwise_cfg):
    """{parameter name: (learning rate, weight decay)} of an AdamW with lr 1 and decay 0.05."""
    config = dict(optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05), constructor='mmcae.LayerDecayOptimWrapperConstructor')
    if paramwise_cfg:
        config['paramwise_cfg'] = paramwise_cfg
    wrapper = build_optim_wrapper(model, config)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {}
    for group in wrapper.optimizer.param_groups:
        for parameter in group['params']:
            name = names[id(parameter)]
            assert name not in found, f'{name} is in two groups'
            found[name] = (group['lr'], group['weight_decay'])
    return found, wrapper


class Detector(nn.Module):
    """A model of another library: its backbone is asked, no method of its own."""

    def __init__(self, **settings):
        super().__init__()
        self.backbone = CAEViT(dict(embed_dims=16, num_layers=3, num_heads=2), img_size=32, use_rel_pos_bias=True, **settings)
        self.neck = nn.ModuleDict(dict(scale=nn.ConvTranspose2d(16, 16, 2), norm=nn.BatchNorm2d(16)))


def decayed(found):
    return {name for name, (_, decay) in found.items() if decay}


def test_decay_in_pretraining(tiny_cae):
    """Matrices are decayed, and so are cls and mask token, as the authors have it; vectors are not."""
    model = tiny_cae(latent_dims=32)
    found, _ = settings_of(model)
    assert set(found) == {name for name, _ in model.named_parameters()}
    free = {'q_bias', 'v_bias', 'gamma_1', 'gamma_2', 'bias'}
    norms = ('norm', 'norm1', 'norm2', 'norm_q', 'norm_k', 'norm_v', 'project.1')
    for name, (rate, decay) in found.items():
        assert rate == 1.0
        without = name.rsplit('.', 1)[-1] in free or name.removesuffix('.weight').endswith(norms)
        assert decay == (0 if without else 0.05), name
    assert {'backbone.cls_token', 'regressor.mask_token', 'backbone.patch_embed.proj.weight', 'decoder.head.weight'} <= decayed(found)


def test_groups_are_few(tiny_cae):
    """Parameters with the same settings share a group, which keeps optimizers fast."""
    _, wrapper = settings_of(tiny_cae())
    assert len(wrapper.optimizer.param_groups) == 2
    _, wrapper = settings_of(Detector(), layer_decay_rate=0.5)
    assert len(wrapper.optimizer.param_groups) == 2 * 5


def test_layer_decay():
    found, _ = settings_of(Detector(), layer_decay_rate=0.5)
    wanted = {'backbone.cls_token': 4, 'backbone.patch_embed.proj.weight': 4, 'backbone.norm.weight': 0, 'neck.scale.weight': 0}
    wanted |= {f'backbone.blocks.{i}.mlp.fc1.weight': 3 - i for i in range(3)}
    wanted |= {f'backbone.blocks.{i}.attn.relative_position_bias_table': 3 - i for i in range(3)}
    for name, power in wanted.items():
        assert found[name][0] == pytest.approx(0.5**power), name
    # The bias tables are matrices, and decayed; norms of other parts are not.
    assert found['backbone.blocks.0.attn.relative_position_bias_table'][1] == 0.05
    assert found['neck.norm.weight'][1] == 0 and found['neck.scale.weight'][1] == 0.05


def test_no_decay_for_further_parameters():
    plain, _ = settings_of(Detector())
    found, _ = settings_of(Detector(), no_decay=['cls_token', 'relative_position_bias_table'])
    tables = {f'backbone.blocks.{i}.attn.relative_position_bias_table' for i in range(3)}
    assert decayed(plain) - decayed(found) == {'backbone.cls_token'} | tables


def test_factors_on_parts():
    found, _ = settings_of(Detector(), lr_mult={'neck': 10, 'backbone': 0.1}, layer_decay_rate=0.5)
    assert found['neck.scale.weight'][0] == pytest.approx(10)
    assert found['backbone.blocks.2.gamma_1'][0] == pytest.approx(0.1 * 0.5)


def test_frozen_parameters_are_left_out():
    found, _ = settings_of(Detector(frozen_stages=2), layer_decay_rate=0.5)
    assert not any(name.startswith(('backbone.blocks.0', 'backbone.blocks.1', 'backbone.cls_token')) for name in found)
    assert 'backbone.blocks.2.gamma_1' in found


def test_without_weight_decay():
    model = Detector()
    constructor = dict(optimizer=dict(type='SGD', lr=0.1), constructor='mmcae.LayerDecayOptimWrapperConstructor')
    groups = build_optim_wrapper(model, constructor).optimizer.param_groups
    assert {group['weight_decay'] for group in groups} == {0}


@pytest.mark.parametrize(
    ('paramwise_cfg', 'message'),
    [
        (dict(layer_decay=0.5), r"paramwise_cfg has \['layer_decay'\]"),
        (dict(layer_decay_rate=0), r'layer_decay_rate=0 must lie in \(0, 1\]'),
        (dict(layer_decay_rate=1.5), r'layer_decay_rate=1.5 must lie in'),
    ],
)
def test_bad_options(paramwise_cfg, message):
    with pytest.raises(ConfigError, match=message):
        settings_of(Detector(), **paramwise_cfg)


def test_layer_decay_needs_a_backbone_that_tells_layers():
    model = nn.ModuleDict(dict(backbone=nn.Linear(2, 2)))
    model.backbone = model['backbone']
    with pytest.raises(ConfigError, match='needs a backbone with get_layer_depth; Linear has none'):
        settings_of(model, layer_decay_rate=0.5)
    assert set(settings_of(model)[0]) == {'backbone.weight', 'backbone.bias'}


def test_same_settings_as_mmpretrains_constructor(tiny_cae):
    """Where mmpretrain's own constructor works, both agree on learning rates."""
    model = tiny_cae()
    found, _ = settings_of(model, layer_decay_rate=0.65)
    theirs = dict(
        optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05),
        constructor='mmpretrain.LearningRateDecayOptimWrapperConstructor',
        paramwise_cfg=dict(layer_decay_rate=0.65),
    )
    wrapper = build_optim_wrapper(model, theirs)
    names = {id(p): name for name, p in model.named_parameters()}
    for group in wrapper.optimizer.param_groups:
        for parameter in group['params']:
            assert found[names[id(parameter)]][0] == pytest.approx(group['lr']), names[id(parameter)]


@pytest.mark.parametrize(
    ('settings', 'fused'),
    [
        (dict(type='AdamW'), True),
        (dict(type='SGD'), True),
        (dict(type='AdamW', fused=False), False),
        (dict(type='AdamW', foreach=True), None),
        (dict(type='RMSprop'), None),
    ],
)
def test_fused_kernels_where_torch_has_them(settings, fused):
    model = nn.Linear(4, 4)
    cfg = dict(type='OptimWrapper', optimizer=dict(settings, lr=0.1), constructor='mmcae.LayerDecayOptimWrapperConstructor')
    assert build_optim_wrapper(model, cfg).optimizer.defaults.get('fused') is fused


def test_fused_update_is_the_same():
    """Also when it goes on from the state of an optimizer that was not fused."""
    reference = nn.Linear(4, 4)
    models = [copy.deepcopy(reference) for _ in range(2)]
    cfg = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.1), constructor='mmcae.LayerDecayOptimWrapperConstructor')
    plain, fused = (
        build_optim_wrapper(m, dict(cfg, optimizer=dict(cfg['optimizer'], **s)))
        for m, s in zip(models, (dict(fused=False), {}), strict=True)
    )
    images = torch.randn(8, 4)
    for number in range(4):
        if number == 2:
            fused.load_state_dict(copy.deepcopy(plain.state_dict()))
        for model, wrapper in zip(models, (plain, fused), strict=True):
            wrapper.update_params(model(images).square().mean())
        torch.testing.assert_close(models[1].weight, models[0].weight)
