"""The description of an encoder: it builds the encoder it describes, and is not believed where it cannot be right."""

import json

import pytest
import torch

from mmcae.checkpoints import EncoderSpec, Origin, ViewSpec, metadata_of, read_checkpoint, read_weights, write_state_dict
from mmcae.models import CAEViT
from mmcae.registry import MODELS
from mmcae.utils.errors import CheckpointError

ARCH = dict(embed_dims=48, num_layers=3, num_heads=4, feedforward_channels=60)
ENCODERS = [
    dict(),
    dict(img_size=(32, 128), patch_size=(16, 32), in_channels=5),
    dict(layer_scale_init_value=0, use_rel_pos_bias=True, final_norm=False),
    dict(window_size=2, global_blocks=(1,), use_rel_pos_bias=True),
]


@pytest.mark.parametrize('settings', ENCODERS)
def test_it_builds_what_it_describes(settings):
    source = CAEViT(**{'arch': ARCH, 'img_size': 64, **settings})
    spec = EncoderSpec.from_dict(json.loads(json.dumps(source.spec.to_dict())), 'here')
    assert spec == source.spec
    built = MODELS.build(spec.config())
    built.load_state_dict(source.state_dict())
    assert built.spec == spec
    images = torch.randn(2, spec.in_channels, *spec.img_size)
    torch.testing.assert_close(built.eval()(images), source.eval()(images))
    assert MODELS.build(spec.config(out_type='featmap')).out_type == 'featmap'


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_it_travels_with_the_tensors(tmp_path, suffix):
    encoder = CAEViT(arch=ARCH, img_size=64)
    spec = encoder.spec.replaced(view=ViewSpec((1.0,), (2.0,), (64, 32), 'bilinear', 1.0), origin=Origin('CAE', 'PixelTargets', 300))
    write_state_dict(tmp_path / f'x{suffix}', encoder.state_dict(), dict(encoder=spec.to_dict(), note='text'))
    content = read_checkpoint(tmp_path / f'x{suffix}')
    assert json.loads(json.dumps(content['meta']['encoder'])) == spec.to_dict()
    assert read_weights(tmp_path / f'x{suffix}').spec() == spec


def test_models_describe_their_encoder(tiny_cae):
    model = tiny_cae()
    meta = metadata_of(model, epochs=7)
    spec = EncoderSpec.from_dict(meta['encoder'], 'here')
    assert spec.origin == Origin('CAE', 'PixelTargets' if model.target_generator else '', 7) and meta['method']['num_heads'] == 4
    assert metadata_of(torch.nn.Linear(1, 1)) == {}


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(version=2), 'version 2, and this mmcae reads version 1'),
        (dict(unknown=1), 'unknown'),
        (dict(embed_dims=0), 'embed_dims=0'),
        (dict(num_layers='3'), "num_layers='3'"),
        (dict(num_layers=True), 'num_layers=True'),
        (dict(num_layers=2**40), 'num_layers'),
        (dict(num_heads=-1), 'num_heads=-1'),
        (dict(img_size=[64]), 'img_size'),
        (dict(img_size=[64, 60]), 'do not tile'),
        (dict(patch_size='16'), 'patch_size'),
        (dict(layer_scale=1), 'layer_scale=1'),
        (dict(global_blocks=[7]), 'global_blocks'),
        (dict(view=dict(mean=[1, 2])), 'mean'),
        (dict(view=dict(std=[0, 0, 0])), 'std'),
        (dict(view=dict(mean=['a', 'b', 'c'])), 'mean'),
        (dict(view=dict(size=[0, 4])), 'size'),
        (dict(view=dict(interpolation='magic')), 'magic'),
        (dict(view=dict(crop_pct=0)), 'crop_pct=0'),
        (dict(view=3), 'view|mapping'),
        (dict(origin=dict(epochs=-1)), 'epochs=-1'),
        (dict(origin=dict(method=3)), 'method=3'),
    ],
)
def test_wrong_descriptions_are_named(changes, message):
    content = CAEViT(arch=ARCH, img_size=64).spec.to_dict() | changes
    with pytest.raises(CheckpointError, match=f'x.pth .*{message}'):
        EncoderSpec.from_dict(content, 'x.pth')


@pytest.mark.parametrize('content', [None, 3, [], {}, 'text'])
def test_what_is_no_description(content):
    with pytest.raises(CheckpointError, match='x.pth describes its encoder in version'):
        EncoderSpec.from_dict(content, 'x.pth')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(num_layers=2), 'num_layers 2, not 3'),
        (dict(embed_dims=96), 'embed_dims 96, not 48'),
        (dict(patch_size=[8, 8]), r'patch_size \(8, 8\), not \(16, 16\)'),
        (dict(num_heads=5), 'num_heads=5 does not fit an encoder 48 wide'),
        (dict(layer_scale=False), 'layer_scale False, not True'),
    ],
)
def test_a_description_against_its_tensors(changes, message):
    encoder = CAEViT(arch=ARCH, img_size=64)
    content = dict(state_dict=encoder.state_dict(), meta=dict(encoder=encoder.spec.to_dict() | changes))
    with pytest.raises(CheckpointError, match=message):
        read_weights(content).spec()
