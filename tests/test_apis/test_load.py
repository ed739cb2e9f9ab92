"""Models straight from a checkpoint: sizes from tensors, the rest from its description, the layout's rules, or arguments."""

import pytest
import torch

from mmcae.apis import load_cae, load_encoder
from mmcae.checkpoints import metadata_of, read_weights, timm_arguments, to_mmpretrain, to_official
from mmcae.models import CAE, CAEDecoder, CAEv2, CAEViT, LatentContextualRegressor
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
    with pytest.raises(CheckpointError, match='has no regressor.mask_token, .* encoder alone, use load_encoder'):
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
    with pytest.raises(CheckpointError, match='no whole encoder: pos_embed'):
        load_encoder({key: value for key, value in state.items() if key != 'pos_embed'}, num_heads=4)
    with pytest.raises(CheckpointError, match=r'missing: blocks\.1\.norm2\.weight'):
        load_encoder({key: value for key, value in state.items() if key != 'blocks.1.norm2.weight'}, num_heads=4)
    with pytest.raises(CheckpointError, match=r'unexpected: blocks\.1\.extra'):
        load_encoder({**state, 'blocks.1.extra': torch.zeros(1)}, num_heads=4)


def test_grids_that_are_no_squares(tiny_cae):
    """A sin-cos table tells its grid, whichever of several a number of patches could be; a learned one does not."""
    for img_size, grid in (((32, 64), (2, 4)), ((32, 128), (2, 8)), ((128, 32), (8, 2)), ((64, 64), (4, 4))):
        source = tiny_cae(backbone=dict(img_size=img_size))
        assert load_encoder(source.state_dict(), num_heads=4).grid == grid
        model = load_cae(source.state_dict(), **HEADS)
        assert model.backbone.grid == grid
        assert_same(model, source)
    learned = tiny_cae(backbone=dict(img_size=(32, 64))).backbone.state_dict()
    learned['pos_embed'] = torch.randn(1, 9, 48)
    with pytest.raises(CheckpointError, match=r'8 patches, which are no square.* give load_encoder img_size=\(height, width\)'):
        load_encoder(learned, num_heads=4)
    assert load_encoder(learned, num_heads=4, img_size=(32, 64)).grid == (2, 4)


def test_a_learned_square_table_is_resized(tiny_cae):
    learned = tiny_cae().backbone.state_dict()
    learned['pos_embed'] = torch.randn(1, 17, 48)
    model = load_encoder(learned, num_heads=4, img_size=(32, 96))
    assert model.grid == (2, 6) and model.pos_embed.shape == (1, 13, 48)


# ---------------------------------------------------------------- heads, and what else tensors do not tell


def test_own_checkpoints_need_no_arguments(tiny_cae):
    model = tiny_cae(backbone=dict(img_size=(32, 128)))
    content = dict(state_dict=model.state_dict(), meta=dict(epoch=3, **metadata_of(model)))
    loaded = load_cae(content)
    assert loaded.backbone.blocks[0].attn.num_heads == loaded.regressor.blocks[0].attn.num_heads == 4
    assert loaded.backbone.spec.origin.method == 'CAE'
    assert load_encoder(content).spec == loaded.backbone.spec


def test_arguments_against_the_checkpoint_are_refused(tiny_cae):
    content = dict(state_dict=tiny_cae().state_dict(), meta=metadata_of(tiny_cae()))
    with pytest.raises(CheckpointError, match='num_heads=6 was given, but the encoder in .* has 4: leave it out'):
        load_encoder(content, num_heads=6)
    with pytest.raises(CheckpointError, match='decoder_num_heads=6 was given, but .* has 4: leave it out'):
        load_cae(content, decoder_num_heads=6)


def test_unknown_heads_are_asked_for(tiny_cae):
    state = tiny_cae().state_dict()
    with pytest.raises(CheckpointError, match=r'does not tell the number of heads of its encoder \(48 wide\).* give num_heads='):
        load_encoder(state)
    with pytest.raises(CheckpointError, match='heads of its regressor and decoder .* give decoder_num_heads='):
        load_cae(state, num_heads=4)
    with pytest.raises(CheckpointError, match='num_heads=5 does not fit an encoder 48 wide with 48 inside'):
        load_encoder(state, num_heads=5)
    with pytest.raises(CheckpointError, match='decoder_num_heads=100 does not fit a width of 48'):
        load_cae(state, num_heads=4, decoder_num_heads=100)


def test_checkpoints_from_before_descriptions(tiny_cae):
    """They hold a text of their config, which is not read: what it told has to be given, and the message says so."""
    text = "model = dict(backbone=dict(type='mmcae.CAEViT', arch=dict(embed_dims=48, num_layers=3, num_heads=4), img_size=64))"
    content = dict(state_dict=tiny_cae().state_dict(), meta=dict(cfg=text))
    with pytest.raises(CheckpointError, match='give num_heads='):
        load_encoder(content)
    assert load_encoder(content, num_heads=4).grid == (4, 4)


@pytest.mark.parametrize(
    ('layout', 'arch', 'heads'),
    [
        ('official', 'tiny', 12),
        ('official', 'small', 12),
        ('official', 'base', 12),
        ('official', 'large', 16),
        ('mmcae', 'small', None),
        ('mmcae', 'base', 12),
        ('encoder', 'tiny', None),  # CAE's have 12, timm's BEiT of this size would have 3
        ('encoder', 'large', 16),
        ('plain', 'tiny', 3),
        ('plain', 'small', 6),
        ('plain', 'base', 12),
        ('mmpretrain', 'small', 6),
        ('mmpretrain', 'base', 12),
    ],
)
def test_heads_by_the_rules_of_a_layout(layout, arch, heads):
    with torch.device('meta'):
        state = {f'backbone.{key}': value for key, value in CAEViT(arch).state_dict().items()}
        if layout == 'official':
            state = to_official(state) | {'regresser.norm.weight': torch.zeros(1)}
        elif layout == 'mmpretrain':
            state = to_mmpretrain(state)
        elif layout != 'mmcae':
            state = {key.removeprefix('backbone.'): value for key, value in state.items()}
        if layout == 'plain':
            state = {key.replace('q_bias', 'qkv.bias'): value for key, value in state.items() if 'v_bias' not in key}
            state = {key: torch.zeros(3 * len(value)) if 'qkv.bias' in key else value for key, value in state.items()}
    assert read_weights(state).spec().num_heads == heads


@torch.no_grad()
def test_windows_are_in_the_description():
    """The encoder of a detector with windows has them as a feature extractor too: its tensors do not tell."""
    backbone = dict(arch=dict(embed_dims=48, num_layers=3, num_heads=4), img_size=64, window_size=2, global_blocks=(1,))
    source = CAEViT(**backbone).eval()
    state = {f'backbone.{name}': value for name, value in source.state_dict().items()}
    model = load_encoder(dict(state_dict=state, meta=dict(encoder=source.spec.to_dict())))
    assert [block.attn.window for block in model.blocks] == [2, None, 2]
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model(images), source(images))


def test_a_checkpoint_of_cae_v2_is_one(tiny_cae):
    """The authors' layouts differ by the decoder's blocks and the copy of the encoder; ours by the name of the head."""
    state = to_official(tiny_cae(decoder=dict(num_layers=0)).state_dict())
    state = {key: value for key, value in state.items() if not key.startswith('alignment_encoder.')}
    model = load_cae(state, **HEADS)
    assert isinstance(model, CAEv2)
    ours = model.state_dict()
    assert isinstance(load_cae({**ours}, **HEADS), CAEv2)
    with pytest.raises(CheckpointError, match='predictor.fc.weight: the rest of the model is incomplete'):
        load_cae({key: value for key, value in ours.items() if key != 'predictor.fc.weight'}, **HEADS)


# ---------------------------------------------------------------- timm's arguments


@pytest.mark.parametrize(('arch', 'name'), [('base', 'beit_base_patch16_224'), ('large', 'beit_large_patch16_224')])
def test_names_in_timm(arch, name):
    with torch.device('meta'):
        spec = CAEViT(arch).spec
    wanted = dict(model_name=name, num_classes=0, global_pool='avg', use_abs_pos_emb=True, use_rel_pos_bias=False)
    assert timm_arguments(spec, pool='avg') == wanted


def test_what_timm_cannot_express():
    for settings in (dict(final_norm=False, img_size=64), dict(patch_size=(16, 32), img_size=(64, 128))):
        encoder = CAEViT(dict(embed_dims=48, num_layers=1, num_heads=4), **settings)
        with pytest.raises(CheckpointError, match="timm's BEiT has square patches"):
            timm_arguments(encoder.spec)


def test_parts_have_the_defaults_of_base():
    """load_cae and configs rely on them."""
    with torch.device('meta'):
        regressor, decoder = LatentContextualRegressor(), CAEDecoder()
    assert (regressor.embed_dims, len(regressor.blocks), regressor.blocks[0].attn.num_heads) == (768, 4, 12)
    assert (len(decoder.blocks), decoder.blocks[0].attn.num_heads, decoder.head.out_features) == (4, 12, 8192)
