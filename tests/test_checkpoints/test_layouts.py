"""Where the encoder is in a file: found where only one can be meant, asked for where there are several."""

import pytest
import torch

from mmcae.checkpoints import load_encoder_weights, locate, read_weights, to_mmpretrain
from mmcae.models import CAEViT
from mmcae.utils.errors import CheckpointError

ARCH = dict(embed_dims=48, num_layers=2, num_heads=4)


def encoder(**settings):
    return CAEViT(**{'arch': ARCH, 'img_size': 64, **settings})


def with_prefix(prefix, state=None):
    return {f'{prefix}{key}': value for key, value in (state or encoder().state_dict()).items()}


def equal(found, wanted):
    return set(found) == set(wanted) and all(torch.equal(found[key], wanted[key]) for key in wanted)


# ---------------------------------------------------------------- one encoder


@pytest.mark.parametrize(
    'wrap',
    [
        lambda s: s,
        lambda s: dict(state_dict=s, epoch=3, optimizer=dict(state={0: dict(exp_avg=torch.zeros(1))})),
        lambda s: dict(net=s),
        lambda s: dict(checkpoint=dict(state_dict=s)),
        lambda s: dict(a=dict(b=dict(c=s))),
        lambda s: dict(model=with_prefix('module.', s)),
        lambda s: dict(module=with_prefix('module.module.', s)),
        lambda s: dict(state_dict=with_prefix('module.encoder.', s)),
        lambda s: {'state_dict': with_prefix('model.encoder.', s), 'pytorch-lightning_version': '2.0', 'hyper_parameters': dict(lr=1)},
        lambda s: dict(state_dict=with_prefix('backbone.', s) | {'head.fc.weight': torch.zeros(3, 48)}),
        lambda s: dict(state_dict=s, state_dict_ema=s),
        lambda s: dict(model=s, model_ema=s),
        lambda s: dict(state_dict=with_prefix('backbone.', s), ema_state_dict=with_prefix('module.backbone.', s)),
        lambda s: s | {'mask_token': torch.zeros(1), 'decoder_blocks.0.attn.qkv.weight': torch.zeros(3, 1)},
    ],
)
def test_where_one_can_be_meant(wrap):
    source = encoder()
    assert equal(read_weights(wrap(dict(source.state_dict()))).encoder, source.state_dict())


def test_plain_vits_as_other_methods_store_them():
    """DINO's teacher alone, and MoCo v3's encoder after its predictor was removed."""
    import timm

    plain = timm.create_model('vit_tiny_patch16_224', img_size=64, embed_dim=48, depth=2, num_heads=4, num_classes=0)
    for content in (dict(teacher=with_prefix('backbone.', plain.state_dict())), with_prefix('module.base_encoder.', plain.state_dict())):
        found = read_weights(content)
        assert equal(found.encoder, read_weights(plain.state_dict()).encoder)


# ---------------------------------------------------------------- several


def several(state):
    return {
        'DINO': (dict(student=with_prefix('module.backbone.', state), teacher=with_prefix('backbone.', state)), ('student.', 'teacher.')),
        'MoCo v3': (
            dict(state_dict=with_prefix('module.base_encoder.', state) | with_prefix('module.momentum_encoder.', state)),
            ('state_dict.base_encoder.', 'state_dict.momentum_encoder.'),
        ),
        'two nets': (dict(a=state, b=state), ('a.', 'b.')),
    }


@pytest.mark.parametrize('name', ['DINO', 'MoCo v3', 'two nets'])
def test_several_are_listed(name):
    content, prefixes = several(dict(encoder().state_dict()))[name]
    with pytest.raises(CheckpointError) as error:
        read_weights(content)
    assert 'has 2 encoders' in str(error.value) and all(f"'{prefix}'" in str(error.value) for prefix in prefixes)
    assert f"prefix='{prefixes[0]}'" in str(error.value)


@pytest.mark.parametrize('name', ['DINO', 'MoCo v3', 'two nets'])
@pytest.mark.parametrize('number', [0, 1])
def test_one_is_chosen_by_the_prefix_in_the_message(name, number):
    content, prefixes = several(dict(encoder().state_dict()))[name]
    chosen = encoder()
    for key in list(content):
        other, _ = several(dict(chosen.state_dict()))[name]
        if prefixes[number].startswith(f'{key}.') and name != 'MoCo v3':
            content[key] = other[key]
    if name == 'MoCo v3':
        part = prefixes[number].split('.')[1]
        content['state_dict'] |= {key: value for key, value in other['state_dict'].items() if f'.{part}.' in key}
    for prefix in (prefixes[number], prefixes[number].rstrip('.')):
        assert equal(read_weights(content, prefix).encoder, chosen.state_dict())


def test_the_usual_container_need_not_be_named():
    content, _ = several(dict(encoder().state_dict()))['MoCo v3']
    for prefix in ('momentum_encoder.', 'module.momentum_encoder.', 'state_dict.module.momentum_encoder'):
        assert locate(content, prefix).kind == 'encoder'


def test_in_a_config(tmp_path):
    content, _ = several(dict(encoder().state_dict()))['DINO']
    torch.save(content, tmp_path / 'dino.pth')
    model = encoder(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'dino.pth'), prefix='teacher.backbone.'))
    model.init_weights()
    assert torch.equal(model.cls_token, content['teacher']['backbone.cls_token'])


# ---------------------------------------------------------------- none


@pytest.mark.parametrize(
    ('content', 'prefix', 'message'),
    [
        ({}, '', 'holds no tensors: is it a checkpoint'),
        (dict(state_dict={}, epoch=3), '', 'holds no tensors'),
        (dict(net=dict(w=torch.zeros(1))), '', r'holds no encoder of a known layout; its keys begin with w .* In it are net'),
        (with_prefix('encoder.'), 'teacher.', r"no tensor whose name begins with 'teacher.'; there are encoder"),
        (dict(decoder=with_prefix('decoder_', {'blocks.0.attn.qkv.weight': torch.zeros(3, 1)})), '', 'no encoder of a known layout'),
    ],
)
def test_none(content, prefix, message):
    with pytest.raises(CheckpointError, match=message):
        read_weights(content, prefix)


# ---------------------------------------------------------------- what tensors do not tell


def test_other_heads_are_refused():
    source, other = encoder(), encoder(arch=dict(ARCH, num_heads=6))
    described = dict(state_dict=source.state_dict(), meta=dict(encoder=source.spec.to_dict()))
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(CheckpointError, match='made for 4 attention heads, and the model has 6: set num_heads=4 in model.backbone.arch'):
        load_encoder_weights(other, described)
    assert equal(other.state_dict(), before)
    report = load_encoder_weights(other, source.state_dict())
    assert "the number of heads is not told: the model's 6 are taken" in report


@pytest.mark.parametrize('described', [False, True])
@pytest.mark.parametrize('bias', [False, True])
def test_grids_of_equally_many_cells_are_resized_knowingly(described, bias):
    """9x16, 16x9 and 12x12 patches have tables of one shape."""
    sizes = [(72, 128), (128, 72), (96, 96)]
    for given in sizes:
        source = encoder(img_size=given, patch_size=8, use_rel_pos_bias=bias)
        torch.nn.init.normal_(source.blocks[0].attn.relative_position_bias_table) if bias else None
        content = dict(state_dict=source.state_dict(), meta=dict(encoder=source.spec.to_dict()) if described else {})
        for wanted in sizes:
            model = encoder(img_size=wanted, patch_size=8, use_rel_pos_bias=bias)
            report = load_encoder_weights(model, content)
            assert ('made for another grid of patches' in report) == (given != wanted)
            expected = encoder(img_size=wanted, patch_size=8).pos_embed
            similar = torch.nn.functional.cosine_similarity(model.pos_embed[:, 1:], expected[:, 1:], dim=-1).mean()
            assert torch.equal(model.pos_embed, source.pos_embed) if given == wanted else similar > 0.6
            if bias and given == wanted:
                assert torch.equal(*(x.blocks[0].attn.relative_position_bias_table for x in (model, source)))


def test_biases_that_blocks_share_go_to_each(tiny_cae):
    """BEiT's pretraining has one table for all blocks."""
    source = encoder(use_rel_pos_bias=True)
    state = {key: value for key, value in source.state_dict().items() if 'bias_table' not in key}
    table = torch.randn(7 * 7 + 3, 4)
    model = encoder(use_rel_pos_bias=True)
    load_encoder_weights(model, state | {'rel_pos_bias.relative_position_bias_table': table})
    assert all(torch.equal(block.attn.relative_position_bias_table, table) for block in model.blocks)
    assert read_weights(state | {'rel_pos_bias.relative_position_bias_table': table}).spec().use_rel_pos_bias


def test_layer_scale_under_timms_names():
    source = encoder()
    state = {key.replace('gamma_', 'ls'): value for key, value in source.state_dict().items()}
    state = {key + '.gamma' if key.endswith(('.ls1', '.ls2')) else key: value for key, value in state.items()}
    assert equal(read_weights(state).encoder, source.state_dict())


@pytest.mark.parametrize(('norm', 'expected'), [(None, None), ('norm', 1.0), ('fc_norm', 2.0), ('other', None)])
def test_two_norms(norm, expected):
    state = dict(encoder().state_dict()) | {'fc_norm.weight': torch.full((48,), 2.0), 'fc_norm.bias': torch.zeros(48)}
    if expected is None:
        with pytest.raises(CheckpointError, match="give norm='norm', or 'fc_norm'"):
            read_weights(state, norm=norm)
    else:
        assert (read_weights(state, norm=norm).encoder['norm.weight'] == expected).all()


def test_layout_of_mmpretrain_inside_others(tiny_cae):
    state = to_mmpretrain(tiny_cae().state_dict())
    assert locate(dict(state_dict=with_prefix('model.', state)), 'model.').kind == 'mmpretrain'
