"""From every layout to ours and back, without losing or changing a tensor."""

import pytest
import torch
from mmpretrain.models import backbones
from reference import golden
from reference.examples import CAE

from mmcae.apis import load_encoder
from mmcae.checkpoints import (
    cae_of,
    convert_mmpretrain,
    convert_official,
    convert_timm,
    encoder_of,
    left_out,
    read_weights,
    to_mmpretrain,
    to_official,
    to_timm,
    tokenizer_of,
)
from mmcae.utils.errors import CheckpointError


def assert_equal(found, wanted):
    assert set(found) == set(wanted)
    for key, value in wanted.items():
        assert torch.equal(found[key], value) and found[key].dtype == value.dtype, key


def to_mmcae(state, norm=None):
    """Under our names, whatever the layout."""
    return read_weights(state, norm=norm).state


def official_of(model):
    return to_official(model.state_dict())


# ---------------------------------------------------------------- official


@pytest.mark.parametrize('name', [*CAE, *golden.present('cae_tiny.pt', 'cae_tiny_small_decoder.pt')])
def test_official_round_trip_of_the_authors_own(name):
    """Their names, their tensors, their order of keys: the last one has to begin with `decoder` for their downstream loaders."""
    theirs = golden.load(name)['state_dict']
    back = to_official(convert_official(theirs))
    assert_equal(back, theirs)
    order = [key.split('.')[0] for key in theirs]
    assert [key.split('.')[0] for key in back] == order
    assert list(back)[-1].startswith('decoder')


@pytest.mark.parametrize('latent_dims', [48, 32])
def test_official_round_trip_of_ours(tiny_cae, latent_dims):
    state = tiny_cae(latent_dims=latent_dims).state_dict()
    assert_equal(convert_official(to_official(state)), state)


def test_official_names(tiny_cae):
    state = official_of(tiny_cae(latent_dims=32))
    for key in (
        'rd_pos_embed',
        'mask_token',
        'encoder.patch_embed.proj.weight',
        'encoder.blocks.2.attn.qkv.weight',
        'alignment_encoder.norm.bias',
        'encoder_to_regresser.weight',
        'encoder_to_regresser_norm.bias',
        'regresser.regressor_blocks.1.norm1_q.weight',
        'regresser.regressor_blocks.1.norm2_cross.weight',
        'regresser.regressor_blocks.1.cross_attn.q.weight',
        'regresser.regressor_blocks.1.cross_attn.q_bias',
        'regresser.regressor_blocks.1.mlp_cross.fc2.bias',
        'regresser.regressor_blocks.1.gamma_2_cross',
        'regresser.norm.weight',
        'decoder.decoder_blocks.0.mlp.fc1.weight',
        'decoder.head.weight',
    ):
        assert key in state, key
    assert state['rd_pos_embed'].shape == (1, 17, 32) and (state['rd_pos_embed'][:, 0] == 0).all()


def test_alignment_encoder_and_its_older_name_are_left_out(tiny_cae):
    model = tiny_cae()
    state = official_of(model)
    older = {key.replace('alignment_encoder.', 'teacher.'): value for key, value in state.items()}
    without = {key: value for key, value in state.items() if not key.startswith('alignment_encoder.')}
    for theirs in (older, without):
        assert_equal(convert_official(theirs), model.state_dict())
    assert len(left_out(older, 'official')) == len(model.backbone.state_dict())
    assert left_out(without, 'official') == []


def test_inner_width_of_the_released_large_model(tiny_cae):
    """12 heads on a width they do not divide, shrunk: 3 heads on 16 channels are 15 wide inside."""
    state = tiny_cae(latent_dims=16, regressor=dict(num_heads=3), decoder=dict(num_heads=3)).state_dict()
    theirs = to_official(state)
    assert theirs['regresser.regressor_blocks.0.cross_attn.q.weight'].shape == (15, 16)
    assert theirs['decoder.decoder_blocks.0.attn.qkv.weight'].shape == (45, 16)
    assert_equal(convert_official(theirs), state)


def test_strange_keys_are_named(tiny_cae):
    state = official_of(tiny_cae()) | {'regresser.extra.weight': torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"'regresser\.extra\.weight' belongs to no known part of CAE"):
        convert_official(state)


# ---------------------------------------------------------------- mmpretrain


def test_mmpretrain_round_trip(tiny_cae):
    state = tiny_cae().state_dict()
    assert_equal(convert_mmpretrain(to_mmpretrain(state)), state)


def test_round_trip_from_mmpretrain(tiny_cae):
    theirs = to_mmpretrain(tiny_cae().state_dict())
    assert_equal(to_mmpretrain(convert_mmpretrain(theirs)), theirs)


def test_tokenizer_and_teacher_of_mmpretrain(tiny_cae):
    """The tokenizer is left out, and can be taken out: their checkpoints have it inside."""
    model = tiny_cae()
    theirs = to_mmpretrain(model.state_dict())
    assert torch.equal(theirs['teacher.cls_token'], theirs['backbone.cls_token'])
    theirs |= {'target_generator.blocks.input.w': torch.ones(1), 'data_preprocessor.mean': torch.ones(3)}
    assert_equal(convert_mmpretrain(theirs), model.state_dict())
    assert_equal(tokenizer_of(theirs), {'blocks.input.w': torch.ones(1)})


def test_fused_biases_of_mmselfsup(tiny_cae):
    """Its decoder has one bias for queries, keys and values; that of the keys does not change the attention."""
    state = tiny_cae().state_dict()
    theirs = to_mmpretrain(state)
    for block in ('neck.decoders.0', 'neck.decoders.1'):
        q, v = theirs.pop(f'{block}.attn.q_bias'), theirs.pop(f'{block}.attn.v_bias')
        theirs[f'{block}.attn.qkv.bias'] = torch.cat((q, torch.randn_like(q), v))
    assert_equal(to_mmcae(theirs | {'head.encoder.blocks.input.w': torch.ones(1)}), state)


def test_mmpretrain_has_no_projection(tiny_cae):
    with pytest.raises(CheckpointError, match='no projection between encoder and regressor'):
        to_mmpretrain(tiny_cae(latent_dims=32).state_dict())


def test_classifier_of_mmpretrain(tiny_cae):
    """A fine-tuned BEiTViT: its norm has another name where the mean is taken, and its head is not CAE's."""
    model = tiny_cae()
    averaged = to_mmpretrain(model.state_dict(), pool='avg')
    assert 'backbone.ln2.weight' in averaged and all(key.startswith('backbone.') for key in averaged)
    state = averaged | {'head.fc.weight': torch.zeros(3, 48), 'backbone.layers.0.attn.relative_position_index': torch.zeros(17, 17)}
    assert_equal(encoder_of(to_mmcae(state)), model.backbone.state_dict())
    assert left_out(state, 'mmpretrain') == ['head.fc.weight', 'backbone.layers.0.attn.relative_position_index']


def test_two_norms_are_not_guessed_between(tiny_cae):
    state = to_mmpretrain(tiny_cae().state_dict())
    both = state | {'backbone.ln2.weight': torch.full((48,), 2.0), 'backbone.ln2.bias': torch.zeros(48)}
    with pytest.raises(CheckpointError, match=r"two final norms, 'ln1' of all tokens and 'ln2' of their mean.* norm='ln1', or 'ln2'"):
        to_mmcae(both)
    assert torch.equal(to_mmcae(both, 'ln1')['backbone.norm.weight'], state['backbone.ln1.weight'])
    assert (to_mmcae(both, 'ln2')['backbone.norm.weight'] == 2).all()


def test_backbone_of_mmpretrain_alone(tiny_cae):
    model = tiny_cae()
    state = {
        key.removeprefix('backbone.'): value for key, value in to_mmpretrain(model.state_dict()).items() if key.startswith('backbone.')
    }
    assert_equal(encoder_of(to_mmcae(state | {'head.weight': torch.zeros(1)})), model.backbone.state_dict())


SMALL = dict(arch=dict(embed_dims=48, num_layers=2, num_heads=4, feedforward_channels=96), img_size=64, patch_size=16, out_type='raw')


@pytest.mark.parametrize(
    ('name', 'settings'),
    [
        ('VisionTransformer', dict(layer_scale_init_value=0.1)),
        ('BEiTViT', dict(use_rel_pos_bias=True, use_abs_pos_emb=False)),
        ('BEiTViT', dict(use_rel_pos_bias=False, use_shared_rel_pos_bias=True, use_abs_pos_emb=False)),
    ],
)
@torch.no_grad()
def test_vits_of_mmpretrain_compute_the_same(name, settings):
    model = getattr(backbones, name)(**SMALL, **settings)
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    model.eval()
    images = torch.randn(1, 3, 64, 64)
    for prefix in ('backbone.', ''):
        encoder = load_encoder({prefix + key: value for key, value in model.state_dict().items()}, num_heads=4)
        torch.testing.assert_close(encoder.encode(images), model(images)[-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ('settings', 'part'),
    [(dict(pre_norm=True), 'a norm in front of its blocks'), (dict(layer_cfgs=dict(ffn_type='swiglu_fused')), 'gated MLPs')],
)
def test_vits_of_mmpretrain_that_caes_encoder_is_not(settings, part):
    model = backbones.VisionTransformer(**SMALL, **settings)
    with pytest.raises(CheckpointError, match=f'given state dict: The ViT of mmpretrain has {part}.*take the file of the model'):
        load_encoder(dict(model.state_dict()), num_heads=4)


# ---------------------------------------------------------------- timm and encoders


@pytest.mark.parametrize('pool', ['token', 'avg'])
def test_timm_round_trip(tiny_cae, pool):
    state = tiny_cae().state_dict()
    theirs = to_timm(state, pool)
    assert ('fc_norm.weight' in theirs) == (pool == 'avg') and ('norm.weight' in theirs) == (pool == 'token')
    assert 'blocks.0.norm1.weight' in theirs
    assert_equal(encoder_of(convert_timm(theirs | {'head.weight': torch.zeros(1)})), encoder_of(state))


def test_unknown_pool(tiny_cae):
    for convert in (to_timm, to_mmpretrain):
        with pytest.raises(CheckpointError, match="pool must be 'token' or 'avg', got 'mean'"):
            convert(tiny_cae().state_dict(), pool='mean')


def test_parts(tiny_cae):
    model = tiny_cae()
    state = model.state_dict()
    assert_equal(encoder_of(state), model.backbone.state_dict())
    assert_equal(cae_of(state | {'head.fc.weight': torch.zeros(1), 'target_generator.w': torch.zeros(1)}), state)


def test_every_kind_comes_to_the_same(tiny_cae):
    model = tiny_cae()
    state = model.state_dict()
    for theirs in (state, to_official(state), to_mmpretrain(state)):
        assert_equal(to_mmcae(theirs), state)
    for theirs in (model.backbone.state_dict(), to_timm(state), to_timm(state, 'avg')):
        assert_equal(encoder_of(to_mmcae(theirs)), model.backbone.state_dict())


def test_unknown_kind(tiny_cae):
    with pytest.raises(CheckpointError, match="Unknown kind of checkpoint 'jax', known are mmcae, official"):
        read_weights(tiny_cae().state_dict(), kind='jax')


def test_plain_vits_lose_nothing_that_matters():
    """A fused bias is split; the bias of the keys does not change the attention."""
    import timm

    from mmcae.models import CAEViT

    torch.manual_seed(0)
    plain = timm.create_model('vit_tiny_patch16_224', img_size=64, embed_dim=48, depth=2, num_heads=4, num_classes=0).eval()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model = CAEViT(dict(embed_dims=48, num_layers=2, num_heads=4), img_size=64, layer_scale_init_value=0, out_type='raw').eval()
    model.load_state_dict(encoder_of(to_mmcae(plain.state_dict())))
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model(images)[0], plain.forward_features(images), rtol=1e-4, atol=1e-5)
