"""Models straight from a checkpoint: sizes from tensors, heads from arguments, the checkpoint's config, or 64 wide."""

import argparse

import pytest
import torch
from mmpretrain.models import BEiTViT

from mmcae.apis import load_cae, load_encoder
from mmcae.apis.load import config_of, config_section, head_count, timm_arguments
from mmcae.checkpoints import to_mmpretrain, to_official
from mmcae.models import CAE, CAEDecoder, CAEViT, LatentContextualRegressor
from mmcae.utils.errors import CheckpointError

HEADS = dict(num_heads=4, decoder_num_heads=4)  # of `tiny_cae`


def assert_same(model, source):
    for key, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


# ---------------------------------------------------------------- the whole model


@pytest.mark.parametrize('layout', ['mmcae', 'official', 'mmpretrain'])
@pytest.mark.parametrize('where', ['file', 'content', 'state dict'])
@torch.no_grad()
def test_load_cae(tiny_cae, tmp_path, layout, where):
    source = tiny_cae().eval()
    state = source.state_dict()
    state = dict(mmcae=state, official=to_official(state), mmpretrain=to_mmpretrain(state))[layout]
    content = dict(state_dict=state, optimizer=dict(state={}))
    torch.save(content, tmp_path / 'x.pth')
    model = load_cae({'file': tmp_path / 'x.pth', 'content': content, 'state dict': state}[where], **HEADS)
    assert isinstance(model, CAE) and model.training and model.target_generator is None
    assert_same(model, source)
    images, mask = torch.randn(2, 3, 64, 64), torch.arange(16).expand(2, -1) % 3 == 0
    expected = source.predict(images, mask)
    for name, value in model.eval().predict(images, mask).items():
        torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize(
    'settings',
    [
        dict(latent_dims=32),
        dict(backbone=dict(img_size=32, patch_size=8, in_channels=5)),
        dict(backbone=dict(arch=dict(embed_dims=48, num_layers=1, num_heads=4, feedforward_channels=60), layer_scale_init_value=0)),
        dict(regressor=dict(feedforward_channels=60), decoder=dict(feedforward_channels=60, num_outputs=7, num_layers=0)),
        dict(regressor=dict(layer_scale_init_value=0, num_layers=1), decoder=dict(layer_scale_init_value=0)),
    ],
)
def test_sizes_come_from_tensors(tiny_cae, settings):
    source = tiny_cae(**settings)
    model = load_cae(source.state_dict(), **HEADS)
    assert_same(model, source)
    assert set(model.state_dict()) == set(source.state_dict())


def test_bias_tables_of_an_encoder_come_from_tensors():
    source = CAEViT(dict(embed_dims=48, num_layers=2, num_heads=4), img_size=64, use_rel_pos_bias=True)
    assert_same(load_encoder(source.state_dict(), num_heads=4), source)


def test_released_large_model():
    """Real widths, without memory: C = D = 1024, 16 heads in the encoder, 12 in regressor and decoder, which are 1020 wide inside."""
    with torch.device('meta'):
        common = dict(embed_dims=1024, num_layers=4, num_heads=12)
        source = CAE(
            dict(type='mmcae.CAEViT', arch='large'),
            dict(type='mmcae.LatentContextualRegressor', in_dims=1024, **common),
            dict(type='mmcae.CAEDecoder', **common),
        )
    state = to_official(source.state_dict())
    assert state['regresser.regressor_blocks.3.cross_attn.k.weight'].shape == (1020, 1024)
    assert state['decoder.decoder_blocks.0.attn.qkv.weight'].shape == (3060, 1024)
    assert not any(key.startswith('encoder_to_regresser') for key in state)
    with torch.device('meta'):
        model = load_cae(state)
    assert model.backbone.blocks[0].attn.num_heads == 16 and model.backbone.num_layers == 24
    assert model.regressor.blocks[0].attn.num_heads == model.decoder.blocks[0].attn.num_heads == 12
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in source.state_dict().items()}


def test_an_encoder_alone_is_not_enough(tiny_cae):
    with pytest.raises(CheckpointError, match='has no regressor.mask_token, .* use load_encoder'):
        load_cae(tiny_cae().backbone.state_dict(), **HEADS)


def test_part_of_a_model_is_not_enough(tiny_cae):
    state = {key: value for key, value in tiny_cae().state_dict().items() if not key.startswith('decoder.blocks.1.mlp')}
    with pytest.raises(CheckpointError, match=r'missing: decoder\.blocks\.1\.mlp\.fc1\.weight'):
        load_cae(state, **HEADS)


# ---------------------------------------------------------------- the encoder


@torch.no_grad()
def test_load_encoder(tiny_cae, tmp_path):
    source = tiny_cae().eval()
    torch.save(source.state_dict(), tmp_path / 'x.pth')
    images = torch.randn(2, 3, 64, 64)
    model = load_encoder(tmp_path / 'x.pth', num_heads=4)
    assert not model.training
    torch.testing.assert_close(model(images), source.backbone(images))
    settings = dict(out_type='featmap', out_indices=(0, 2), img_size=(96, 64), final_norm=False)
    model = load_encoder(source.state_dict(), num_heads=4, **settings)
    assert [tuple(x.shape) for x in model(torch.randn(1, 3, 96, 64))] == [(1, 48, 6, 4)] * 2


def test_incomplete_encoders(tiny_cae):
    state = tiny_cae().backbone.state_dict()
    with pytest.raises(CheckpointError, match='the encoder has no pos_embed'):
        load_encoder({key: value for key, value in state.items() if key != 'pos_embed'}, num_heads=4)
    with pytest.raises(CheckpointError, match=r'missing: blocks\.1\.norm2\.weight'):
        load_encoder({key: value for key, value in state.items() if key != 'blocks.1.norm2.weight'}, num_heads=4)
    with pytest.raises(CheckpointError, match=r'unexpected: blocks\.1\.extra'):
        load_encoder({**state, 'blocks.1.extra': torch.zeros(1)}, num_heads=4)


def test_grids_that_are_no_squares(tiny_cae):
    """Tensors tell the number of patches, not the shape of the grid: the config or the user has to."""
    source = tiny_cae(backbone=dict(img_size=(32, 64)))
    with pytest.raises(CheckpointError, match='8 patches, which are no square.* give load_encoder the img_size'):
        load_encoder(source.state_dict(), num_heads=4)
    assert load_encoder(source.state_dict(), num_heads=4, img_size=(32, 64)).grid == (2, 4)
    content = dict(state_dict=source.state_dict(), meta=dict(cfg="model = dict(backbone=dict(type='mmcae.CAEViT', img_size=(32, 64)))"))
    assert load_cae(content, **HEADS).backbone.grid == (2, 4)
    # A square number of patches is no square image for that.
    source = tiny_cae(backbone=dict(img_size=(32, 128)))
    content = dict(state_dict=source.state_dict(), meta=dict(cfg="model = dict(backbone=dict(type='mmcae.CAEViT', img_size=(32, 128)))"))
    model = load_cae(content, **HEADS)
    assert model.backbone.grid == (2, 8)
    assert_same(model, source)
    assert load_encoder(content, num_heads=4).grid == (2, 8)


# ---------------------------------------------------------------- heads


def test_head_count():
    assert head_count(768, 768, 'num_heads') == 12  # 64 wide
    assert head_count(1024, 1024, 'num_heads') == 16
    assert head_count(1024, 1020, 'num_heads') == 12  # the released large model
    assert head_count(48, 48, 'num_heads', given=4) == 4
    assert head_count(48, 48, 'num_heads', told=6) == 6
    assert head_count(48, 48, 'num_heads', given=4, told=6) == 4
    assert head_count(1024, 1024, 'num_heads', told=12) == 16  # what the config says was not built


def test_heads_that_are_not_obvious_are_asked_for():
    with pytest.raises(CheckpointError, match='none is obvious for a width of 48: give decoder_num_heads='):
        head_count(48, 48, 'decoder_num_heads')
    with pytest.raises(CheckpointError, match='5 heads do not fit a width of 48 with 48 inside the attention: give num_heads='):
        head_count(48, 48, 'num_heads', given=5)
    with pytest.raises(CheckpointError, match='100 heads do not fit'):
        head_count(48, 48, 'num_heads', given=100)


def test_assumed_heads_are_said(capsys):
    from mmengine.logging import MMLogger

    MMLogger.get_instance('heads', log_level='INFO')
    head_count(768, 768, 'num_heads')
    captured = capsys.readouterr()
    assert 'num_heads=12 is assumed, each 64 wide' in captured.out + captured.err


@pytest.mark.parametrize(
    ('backbone', 'heads'),
    [
        (dict(type='mmcae.CAEViT', arch=dict(embed_dims=48, num_heads=4)), 4),
        (dict(type='mmcae.CAEViT', arch='small'), 12),
        (dict(type='CAEPretrainViT', arch='b'), 12),
        (dict(type='CAEPretrainViT', arch='small'), BEiTViT.arch_zoo['small']['num_heads']),  # not our small
        (dict(type='ResNet', depth=50), None),
    ],
)
def test_heads_in_the_config(backbone, heads):
    text = f'model = dict(type="CAE", backbone={backbone!r}, neck=dict(num_heads=6))\nlr = 1e-3\n'
    found = config_of(dict(meta=dict(cfg=text)))
    assert found.get('num_heads') == heads and found['decoder_num_heads'] == 6


def test_own_runs_need_no_arguments(tiny_cae):
    from mmengine.config import Config

    config = dict(model=dict(type='mmcae.CAE', backbone=dict(type='mmcae.CAEViT', arch=dict(embed_dims=48, num_layers=3, num_heads=4)),
                             neck=[dict(type='FPN')], decoder=dict(type='mmcae.CAEDecoder', num_heads=4)))  # fmt: skip
    content = dict(state_dict=tiny_cae().state_dict(), meta=dict(cfg=Config(config).pretty_text, epoch=3))
    model = load_cae(content)
    assert model.backbone.blocks[0].attn.num_heads == model.regressor.blocks[0].attn.num_heads == 4
    assert load_encoder(content).blocks[0].attn.num_heads == 4


@torch.no_grad()
def test_windows_are_in_the_config():
    """The encoder of a detector with windows has them as a feature extractor too: its tensors do not tell."""
    from mmengine.config import Config

    backbone = dict(arch=dict(embed_dims=48, num_layers=3, num_heads=4), img_size=64, window_size=2, global_blocks=(1,))
    source = CAEViT(**backbone).eval()
    config = Config(dict(model=dict(backbone=dict(type='mmcae.CAEViT', **backbone), neck=dict(type='mmcae.SimpleFeaturePyramid'))))
    state = {f'backbone.{name}': value for name, value in source.state_dict().items()}
    model = load_encoder(dict(state_dict=state, meta=dict(cfg=config.pretty_text)))
    assert [block.attn.window for block in model.blocks] == [2, None, 2]
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model(images), source(images))


@pytest.mark.parametrize(('name', 'heads'), [('cae_base_patch16_224_8k_vocab', 12), ('cae_large_patch16_224_8k_vocab', 16)])
def test_heads_of_the_authors_arguments(name, heads):
    """Their arguments name the model; the decoder's heads among them are ignored by their code."""
    found = config_of(dict(args=argparse.Namespace(model=name, decoder_num_heads=16)))
    assert found == dict(num_heads=heads, decoder_num_heads=12)


@pytest.mark.parametrize(
    'text',
    [
        "import os; os.system('false')\nmodel = dict(backbone=dict(arch=os.system('false')))",
        'model = __import__("os")',
        'model = dict(**{"backbone": 1})',
        'model = 3',
        'model = [',
        '(' * 10_000,
        'model = dict(backbone=[1, 2], decoder=None)',
        'model = {{}: 1, "backbone": {"arch": [{}]}}',
        'model = dict(backbone=dict(arch=dict(num_heads="12"), img_size=(None, 3)))',
        'model = dict(backbone=dict(window_size="14", global_blocks=(1,)))',
        'model = dict(backbone=dict(window_size=14, global_blocks=3))',
    ],
)
def test_config_text_is_never_run(text):
    assert config_of(dict(meta=dict(cfg=text))) == {}


def test_config_section():
    text = "a = 1\nmodel = dict(x=1, y={'z': [1, 'two', None]}, f=open('x'), n=-1)\n"
    assert config_section(text, 'model') == dict(x=1, y=dict(z=(1, 'two', None)), f=None, n=None)
    assert config_section('b = 2', 'model') == {}
    assert config_of({}) == {}


# ---------------------------------------------------------------- timm's arguments


@pytest.mark.parametrize(('arch', 'name'), [('base', 'beit_base_patch16_224'), ('large', 'beit_large_patch16_224')])
def test_names_in_timm(arch, name):
    with torch.device('meta'):
        state = {f'backbone.{key}': value for key, value in CAEViT(arch).state_dict().items()}
    wanted = dict(model_name=name, num_classes=0, global_pool='avg', use_abs_pos_emb=True, use_rel_pos_bias=False)
    assert timm_arguments(state, pool='avg') == wanted


def test_what_timm_cannot_express():
    for settings, heads in ((dict(final_norm=False, img_size=64), 4), (dict(patch_size=(16, 32), img_size=(64, 128)), 4)):
        encoder = CAEViT(dict(embed_dims=48, num_layers=1, num_heads=4), **settings)
        state = {f'backbone.{key}': value for key, value in encoder.state_dict().items()}
        with pytest.raises(CheckpointError, match="timm's BEiT has square patches"):
            timm_arguments(state, heads)


def test_parts_have_the_defaults_of_base():
    """load_cae and configs rely on them."""
    with torch.device('meta'):
        regressor, decoder = LatentContextualRegressor(), CAEDecoder()
    assert (regressor.embed_dims, len(regressor.blocks), regressor.blocks[0].attn.num_heads) == (768, 4, 12)
    assert (len(decoder.blocks), decoder.blocks[0].attn.num_heads, decoder.head.out_features) == (4, 12, 8192)
