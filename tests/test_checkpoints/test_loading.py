"""The strict loader: what it reports, what it resizes, and what stops the run."""

import pytest
import torch

from mmcae.checkpoints import load_encoder_weights, load_strictly, pretrained_source, to_mmpretrain, to_official
from mmcae.models import CAEViT
from mmcae.utils.errors import CheckpointError

ARCH = dict(embed_dims=48, num_layers=3, num_heads=4)  # that of `tiny_cae`


def encoder(**settings):
    return CAEViT(**{**dict(arch=ARCH, img_size=64), **settings})


def half(state):
    """A checkpoint of the first half of the blocks: what the wrong arch gives."""
    return {key: value for key, value in state.items() if '.blocks.1.' not in key and '.blocks.2.' not in key}


@pytest.mark.parametrize('layout', ['mmcae', 'official', 'mmpretrain', 'encoder'])
def test_encoder_from_any_layout(tiny_cae, tmp_path, layout):
    source = tiny_cae()
    state = source.state_dict()
    state = dict(mmcae=state, official=to_official(state), mmpretrain=to_mmpretrain(state), encoder=source.backbone.state_dict())[layout]
    torch.save(state, tmp_path / 'x.pth')
    model = encoder()
    report = load_encoder_weights(model, tmp_path / 'x.pth')
    count = len(model.state_dict())
    assert f'CAEViT: {count} of {count} tensors loaded from {tmp_path / "x.pth"} ({layout})' in report
    assert ('tensors of other parts unused' in report) == (layout != 'encoder')
    for key, value in source.backbone.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


def test_half_a_checkpoint_stops_the_run(tiny_cae, tmp_path):
    """The first missing keys, the count, and the remedies are in the message; the model is unchanged."""
    torch.save(half(tiny_cae().state_dict()), tmp_path / 'half.pth')
    model = encoder()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load_encoder_weights(model, tmp_path / 'half.pth')
    message = str(error.value)
    for part in ('half.pth', 'does not fit this CAEViT', '21 of 51 tensors match', '30 missing: blocks.1.gamma_1; ', ' ...',
                 'mmcae convert', 'allow_missing'):  # fmt: skip
        assert part in message, part
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_checkpoint_of_a_deeper_model(tiny_cae):
    with pytest.raises(CheckpointError, match=r'15 unexpected: blocks\.2\.gamma_1'):
        load_encoder_weights(encoder(arch=dict(ARCH, num_layers=2)), tiny_cae().state_dict())


def test_checkpoint_of_another_width(tiny_cae):
    with pytest.raises(CheckpointError, match=r'of another shape: cls_token \(1, 1, 48\) in the checkpoint, \(1, 1, 32\) in the model'):
        load_encoder_weights(encoder(arch=dict(ARCH, embed_dims=32)), tiny_cae().state_dict())


def test_other_channels(tiny_cae):
    """From three channels the patch embedding is adapted, and the report says so; from others it is not."""
    report = load_encoder_weights(encoder(in_channels=5), tiny_cae().state_dict())
    assert '51 of 51 tensors' in report and 'patch_embed.proj.weight adapted from 3 to 5 channels' in report
    with pytest.raises(CheckpointError, match=r'patch_embed\.proj\.weight \(48, 4, 16, 16\) in the checkpoint, \(48, 5, 16, 16\)'):
        load_encoder_weights(encoder(in_channels=5), tiny_cae(backbone=dict(in_channels=4)).state_dict())


def test_what_may_be_missing(tiny_cae):
    """Pretraining has no bias tables; whoever wants them says so."""
    state = tiny_cae().state_dict()
    model = encoder(use_rel_pos_bias=True)
    with pytest.raises(CheckpointError, match=r'3 missing: blocks\.0\.attn\.relative_position_bias_table'):
        load_encoder_weights(model, state)
    torch.nn.init.ones_(model.blocks[0].attn.relative_position_bias_table)
    report = load_encoder_weights(model, state, allow_missing=['relative_position_bias_table'])
    assert '51 of 54 tensors' in report and '3 not in it and left as they are (relative_position_bias_table)' in report
    assert (model.blocks[0].attn.relative_position_bias_table == 1).all()
    # What is excused is no more than that.
    with pytest.raises(CheckpointError, match='30 missing'):
        load_encoder_weights(model, half(state), allow_missing=['relative_position_bias_table'])


def test_dense_protocols_do_without_the_norm(tiny_cae):
    report = load_encoder_weights(encoder(final_norm=False), tiny_cae().state_dict())
    assert '49 of 49 tensors' in report


@pytest.mark.parametrize('settings', [{}, dict(lora=dict(rank=2))], ids=['plain', 'lora'])
def test_layer_scale_is_merged_into_an_encoder_without(tiny_cae, settings):
    source = tiny_cae().backbone.eval()
    with torch.no_grad():
        for name, parameter in source.named_parameters():  # none is alike, and none is zero
            parameter.add_(torch.randn(parameter.shape) * (1.0 if 'gamma' in name else 0.1))
    init_cfg = dict(type='Pretrained', checkpoint='given below') if settings else None
    model = encoder(layer_scale_init_value=0, final_norm=True, init_cfg=init_cfg, **settings).eval()
    report = load_encoder_weights(model, {f'backbone.{key}': value for key, value in source.state_dict().items()})
    assert '; its layer scale, which the model does not have, is merged into the layers before it' in report
    assert not any('gamma' in name for name in model.state_dict())
    images = torch.randn(2, 3, 64, 64)
    index = torch.tensor([[1, 3, 8], [0, 2, 5]])
    with torch.no_grad():
        torch.testing.assert_close(model.encode(images), source.encode(images), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.encode(images, index), source.encode(images, index), rtol=1e-5, atol=1e-5)


def test_layer_scale_without_its_layer_stays_unexpected(tiny_cae):
    state = {key: value for key, value in tiny_cae().state_dict().items() if key != 'backbone.blocks.1.mlp.fc2.bias'}
    with pytest.raises(CheckpointError, match=r'1 missing: blocks.1.mlp.fc2.bias. 1 unexpected: blocks.1.gamma_2'):
        load_encoder_weights(encoder(layer_scale_init_value=0), state)


def test_resized_tables_are_reported(tiny_cae):
    report = load_encoder_weights(encoder(img_size=(96, 64)), tiny_cae().state_dict())
    assert '1 of them resized (pos_embed)' in report
    state = {f'backbone.{key}': value for key, value in encoder(use_rel_pos_bias=True).state_dict().items()}
    report = load_encoder_weights(encoder(use_rel_pos_bias=True, img_size=96), state)
    assert '4 of them resized (pos_embed, blocks.0.attn.relative_position_bias_table, ' in report


def test_report_is_logged(tiny_cae, caplog):
    import logging

    from mmengine.logging import MMLogger

    logger = MMLogger.get_instance('strict-loader')
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO):
        report = load_strictly(encoder(), encoder().state_dict(), 'here')
    assert report in caplog.text


def test_half_precision_weights(tiny_cae):
    model = encoder(img_size=96)
    load_encoder_weights(model, {key: value.half() for key, value in tiny_cae().state_dict().items()})
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize(
    ('init_cfg', 'message'),
    [
        (dict(type='Xavier'), r"only dict\(type='Pretrained', checkpoint=PATH\)"),
        (dict(type='Pretrained'), 'needs `checkpoint`'),
        (dict(type='Pretrained', checkpoint='x.pth', revise_keys=[]), r"unknown: \['revise_keys'\]"),
    ],
)
def test_bad_init_cfg(init_cfg, message):
    with pytest.raises(CheckpointError, match=message):
        pretrained_source(init_cfg)


def test_init_cfg():
    source = dict(checkpoint='x.pth', allow_missing=['norm'])
    assert pretrained_source(dict(type='Pretrained', **source)) == source
    assert pretrained_source([dict(type='Pretrained', **source)]) == source
    assert pretrained_source(None) is None
