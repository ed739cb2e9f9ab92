"""TimmEncoder: the same numbers as timm's own models, with all patches and with some, and one line for what it does not take."""

import itertools

import pytest
import timm
import torch
from torch import nn

from mmcae.models import CAEv2, CAEViT, TimmEncoder
from mmcae.utils.errors import CheckpointError, ConfigError

SMALL = dict(depth=2, embed_dim=32, num_heads=2)
MODELS = {
    'vit_small_patch16_224': dict(img_size=64),
    'deit3_small_patch16_224': dict(img_size=64),
    'vit_small_patch8_224': dict(img_size=32),
    'vit_small_patch14_dinov2': dict(img_size=56),
    'vit_small_patch14_reg4_dinov2': dict(img_size=56),
    'vit_giant_patch14_dinov2': dict(img_size=56, embed_dim=48),
    'vit_small_patch16_dinov3': dict(img_size=64),
    'vit_small_plus_patch16_dinov3': dict(img_size=64),
    'eva02_small_patch14_224': dict(img_size=56),
    'eva02_base_patch14_224': dict(img_size=56),
    'vit_large_patch16_224': dict(img_size=64, init_values=1e-5, dynamic_img_size=True),  # UNI
    'vit_base_patch16_clip_quickgelu_224': dict(img_size=64),
    'vit_small_patch16_rope_mixed_224': dict(img_size=64),
    'deit_small_distilled_patch16_224': dict(img_size=64),
    'vit_base_patch16_siglip_224': dict(img_size=64),
}


def make(name, **settings):
    torch.manual_seed(0)
    encoder = TimmEncoder(name, **{**SMALL, **MODELS.get(name, dict(img_size=64)), **settings})
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return encoder.eval()


def reference(encoder, name):
    """timm's own model, built and loaded without anything of ours."""
    model = timm.create_model(name, num_classes=0, **{**SMALL, **MODELS[name]}).eval()
    state = {key.removeprefix('vit.'): value for key, value in encoder.state_dict().items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all(key.startswith('attn_pool.') for key in missing)
    return model


def with_tokens_cut_out(model, images, index):
    """timm's blocks one by one, on the tokens of some patches of one image, with their rotary positions: slow and obvious."""
    outputs = []
    for image, kept in zip(images, index, strict=True):
        tokens = model._pos_embed(model.patch_embed(image[None]))
        tokens, rope = tokens if isinstance(tokens, tuple) else (tokens, None)
        prefix = model.num_prefix_tokens
        x = torch.cat([tokens[:, :prefix], *(tokens[:, prefix + i : prefix + i + 1] for i in kept.tolist())], dim=1)
        x = model.norm_pre(x)
        for depth, block in enumerate(model.blocks):
            if rope is None:
                x = block(x)
            elif rope.ndim == 4:
                x = block(x, rope=torch.stack([rope[depth, :, i] for i in kept.tolist()], dim=1))
            else:
                x = block(x, rope=torch.stack([rope[i] for i in kept.tolist()]))
        outputs.append(model.norm(x))
    return torch.cat(outputs)


@pytest.mark.parametrize('name', list(MODELS))
def test_same_as_timm(name):
    """Features of all patches and of some, and the gradients of both."""
    encoder = make(name)
    model = reference(encoder, name)
    side = MODELS[name]['img_size']
    images = torch.randn(2, 3, side, side)
    index = torch.stack([torch.randperm(encoder.grid[0] * encoder.grid[1])[:5] for _ in range(2)])
    for ours, theirs in (
        (encoder.encode(images), model.forward_features(images)),
        (encoder.encode(images, index), with_tokens_cut_out(model, images, index)),
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
        encoder.zero_grad()
        model.zero_grad()
        (ours * torch.arange(32 if ours.shape[-1] == 32 else 48)).mean().backward()
        (theirs * torch.arange(32 if ours.shape[-1] == 32 else 48)).mean().backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if not name.startswith(('attn_pool', 'fc_norm'))}
        for key, gradient in gradients.items():
            found = encoder.get_parameter(f'vit.{key}').grad
            torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f'{key}: {text}')


@torch.no_grad()
@pytest.mark.parametrize('name', ['vit_small_patch14_reg4_dinov2', 'vit_small_patch16_dinov3'])
def test_another_image_size_is_what_timm_makes_of_it(name):
    encoder = make(name)
    p = encoder.patch_size[0]
    model = timm.create_model(name, num_classes=0, **{**SMALL, **MODELS[name]}, dynamic_img_size=True).eval()
    model.load_state_dict({key.removeprefix('vit.'): value for key, value in encoder.state_dict().items()})
    images = torch.randn(1, 3, 3 * p, 6 * p)
    torch.testing.assert_close(encoder.encode(images), model.forward_features(images))


@torch.no_grad()
def test_mean_is_normalised_by_the_models_own_norm():
    encoder = make('eva02_small_patch14_224', out_type='avg_featmap')
    model = reference(encoder, 'eva02_small_patch14_224')
    images = torch.randn(2, 3, 56, 56)
    torch.testing.assert_close(encoder(images)[0], model(images))
    with pytest.raises(ConfigError, match="global_pool='avg' cannot be pretrained: .* set global_pool='token'"):
        encoder.check_pretrainable()
    make('eva02_small_patch14_224', global_pool='token').check_pretrainable()


def test_arguments_are_timms_and_are_kept():
    encoder = make(
        'vit_tiny_patch16_224', in_chans=1, drop_path_rate=0.2, mlp_layer='SwiGLUPacked', act_layer=nn.SiLU, norm_layer=nn.LayerNorm
    )
    assert type(encoder.blocks[0].mlp).__name__ == 'GluMlp'
    assert encoder.blocks[1].drop_path1.drop_prob == pytest.approx(0.2)
    assert encoder.spec.arguments['act_layer'] == 'SiLU' and encoder.spec.in_channels == 1
    exact = make('vit_tiny_patch16_224', norm_layer=dict(type='LayerNorm', eps=1e-12))
    assert exact.norm.eps == 1e-12
    assert encoder.spec.view.mean == (127.5,) * 3 and encoder.spec.view.size == (64, 64)


@pytest.mark.parametrize(
    ('name', 'settings', 'message'),
    [
        ('resnet50', {}, 'resnet50 is no plain ViT: it is of timm.models.resnet. TimmEncoder takes'),
        ('swin_tiny_patch4_window7_224', {}, 'is no plain ViT: it is of timm.models.swin_transformer'),
        ('vit_small_r26_s32_224', {}, 'is no plain ViT: it is of timm.models.vision_transformer_hybrid'),
        ('vit_relpos_small_patch16_224', {}, 'is no plain ViT: it is of timm.models.vision_transformer_relpos'),
        ('beit_base_patch16_224', {}, 'for BEiT use mmcae.CAEViT'),
        ('vit_smal_patch16_224', {}, "timm has no model 'vit_smal_patch16_224'; did you mean 'vit_small_patch16_224'"),
        ('vit_small_patch14_dinov2', dict(img_size=224 + 8), '232x232 pixels .* not tiled by patches of 14x14: .* such as 238x238'),
        ('vit_small_patch16_224', dict(pretrained=True), 'nothing is downloaded: give a local file by init_cfg'),
        ('vit_small_patch16_224', dict(num_classes=10), 'the encoder has no classifier'),
        ('vit_small_patch16_224', dict(patch_drop_rate=0.5), 'methods pick the patches themselves'),
        ('vit_small_patch16_224', dict(in_channels=1), "timm's name of it is in_chans"),
        ('vit_small_patch16_224', dict(window_size=7), 'windows of attention are those of mmcae.CAEViT alone'),
        ('vit_small_patch16_224', dict(windows=7), "refuses {.*'windows': 7}: .*unexpected keyword argument 'windows'"),
        ('vit_small_patch16_224', dict(embed_dim=33), 'dim should be divisible by num_heads'),
        ('vit_small_patch16_224', dict(mlp_layer='Mpl'), "mlp_layer='Mpl' is neither in timm.layers nor in torch.nn"),
        ('vit_small_patch16_224', dict(norm_layer=lambda dim: nn.LayerNorm(dim)), 'cannot be kept in a checkpoint'),
        ('vit_small_patch16_224', dict(out_indices=2), r'out_indices \[2\] name no block: give some of the 2'),
    ],
)
def test_what_it_does_not_take(name, settings, message):
    with pytest.raises(ConfigError, match=message):
        make(name, **settings)


def test_models_with_further_parts(monkeypatch):
    create = timm.create_model

    def with_adapter(name, **settings):
        model = create(name, **settings)
        model.adapter = nn.Linear(2, 2)
        return model

    monkeypatch.setattr(timm, 'create_model', with_adapter)
    with pytest.raises(ConfigError, match='is no plain ViT: it has further parts, adapter'):
        make('vit_tiny_patch16_224')


def test_one_image_size_alone():
    encoder = make('vit_tiny_patch16_224', dynamic_img_size=False)
    encoder.encode(torch.randn(1, 3, 64, 64))
    with pytest.raises(ConfigError, match='takes 64x64 pixels alone with dynamic_img_size=False'):
        encoder.encode(torch.randn(1, 3, 96, 64))


def test_patches_of_a_tokenizer_of_8_pixels():
    """Patch 14 with a view for patches of 16: the message says which size fits."""
    from mmcae.models import PixelTargets

    with pytest.raises(ConfigError, match=r'the encoder has \(4, 4\) patches: set the size of the second view to \(32, 32\)'):
        PixelTargets(patch_size=8).check_view((56, 56), make('vit_small_patch14_dinov2').grid)


def test_weights_of_another_size(tmp_path):
    torch.save(make('vit_small_patch14_dinov2').state_dict(), tmp_path / 'dinov2.pth')
    settings = dict(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'dinov2.pth')))
    with pytest.raises(CheckpointError, match='patches of 14x14 pixels and vit_small_patch16_224 of 16x16: set patch_size=14'):
        make('vit_small_patch16_224', init_values=1.0, **settings).init_weights()
    with pytest.raises(CheckpointError, match=r'does not fit this TimmEncoder .* missing: vit.reg_token'):
        make('vit_small_patch14_reg4_dinov2', **settings).init_weights()
    larger = make('vit_small_patch14_dinov2', img_size=84, **settings)
    larger.init_weights()
    assert larger.grid == (6, 6)


RELEASED = ['vit_small_patch14_dinov2', 'vit_small_patch14_reg4_dinov2', 'vit_small_patch16_dinov3', 'eva02_small_patch14_224']


@pytest.mark.parametrize('saved, built', list(itertools.permutations(RELEASED, 2)))
def test_weights_of_another_model(tmp_path, saved, built):
    """At another size too, whose positions would be resized: the message names the model of timm that the file is of."""
    torch.save(timm.create_model(saved, num_classes=0, **(SMALL | MODELS[saved])).state_dict(), tmp_path / 'vit.pth')
    size = 2 * MODELS[built]['img_size']
    with pytest.raises(CheckpointError, match=rf'By its tensors it is {saved}: set model_name=.{saved}.* in the encoder\.$'):
        make(built, img_size=size, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'vit.pth'))).init_weights()


def test_weights_of_caes_own_encoder(tmp_path):
    """They are described as no model of timm."""
    encoder = CAEViT(arch=dict(embed_dims=32, num_layers=2, num_heads=2), img_size=64)
    torch.save(dict(state_dict=encoder.state_dict(), meta=dict(encoder=encoder.spec.to_dict())), tmp_path / 'cae.pth')
    with pytest.raises(CheckpointError, match=r'does not fit this TimmEncoder .* missing: vit.blocks.0.attn.qkv.bias'):
        make('vit_small_patch16_224', init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'cae.pth'))).init_weights()


@pytest.mark.parametrize('name', ['vit_small_patch14_reg4_dinov2', 'vit_small_patch16_dinov3', 'vit_base_patch16_clip_quickgelu_224'])
def test_pretraining(name):
    """A step of CAE v2, whose teacher is an encoder of the same kind."""
    size = MODELS[name]['img_size']
    settings = dict(type='mmcae.TimmEncoder', model_name=name, **{**SMALL, **MODELS[name]})
    model = CAEv2(
        backbone=settings,
        regressor=dict(type='mmcae.LatentContextualRegressor', in_dims=32, embed_dims=32, num_layers=1, num_heads=2),
        target_generator=dict(type='mmcae.Teacher', model=settings),
        data_preprocessor=dict(type='mmcae.ViewPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    )
    model.init_weights()
    patches = (size // model.backbone.patch_size[0]) ** 2
    mask = torch.zeros(2, patches, dtype=torch.bool)
    mask[:, : patches // 2] = True
    from mmpretrain.structures import DataSample

    samples = [DataSample(mask=m.view(model.backbone.grid)) for m in mask]
    losses = model.loss(torch.randn(2, 3, size, size), samples)
    losses['loss_main'].backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_a_whole_method_is_loaded_again(tmp_path):
    """What pretraining with a TimmEncoder writes, by load_cae and by init_cfg of the model."""
    from mmcae.apis import load_cae
    from mmcae.checkpoints import write_state_dict
    from mmcae.checkpoints.describing import metadata_of
    from mmcae.models import CAE

    parts = dict(
        backbone=dict(type='mmcae.TimmEncoder', model_name='vit_small_patch14_reg4_dinov2', **SMALL, img_size=56),
        regressor=dict(type='mmcae.LatentContextualRegressor', in_dims=32, embed_dims=32, num_layers=1, num_heads=2),
        decoder=dict(type='mmcae.CAEDecoder', embed_dims=32, num_layers=1, num_heads=2, num_outputs=8),
    )
    model = CAE(**parts)
    write_state_dict(tmp_path / 'x.pth', model.state_dict(), metadata_of(model))
    for again in (load_cae(tmp_path / 'x.pth'), CAE(**parts, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'x.pth')))):
        again.init_weights() if again.init_cfg else None
        state = again.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
