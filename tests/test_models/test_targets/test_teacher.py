"""Features of frozen models as targets: those of timm, mmpretrain and our own encoders, from local files alone."""

import pickle
import re

import pytest
import timm
import torch
from mmpretrain.models import ResNet, VisionTransformer
from safetensors.torch import save_file

from mmcae.models import CAE, CAEViT, FeatureTargets
from mmcae.registry import MODELS
from mmcae.utils.errors import CheckpointError, ConfigError

VIT = dict(patch_size=8, embed_dim=24, depth=2, num_heads=2)
VIEW = (32, 48)


def normalised(vectors):
    mean, variance = vectors.mean(-1, keepdim=True), vectors.var(-1, unbiased=False, keepdim=True)
    return (vectors - mean) / (variance + 1e-5).sqrt()


def test_timm_vit(images, tmp_path):
    """With a classifier in the file, as people have it, and a position table for another size."""
    source = timm.create_model('vit_tiny_patch16_224', img_size=64, num_classes=7, **VIT).eval()
    save_file(source.state_dict(), tmp_path / 'vit.safetensors')
    model = dict(type='timm', model_name='vit_tiny_patch16_224', img_size=VIEW, **VIT)
    targets = FeatureTargets(model, VIEW, tmp_path / 'vit.safetensors')
    assert (targets.target_dim, targets.downsample, targets.vocab_size) == (24, (8, 8), None)
    source.set_input_size(img_size=VIEW)
    expected = normalised(source.forward_features(images)[:, 1:])
    torch.testing.assert_close(targets.tokenize(images), expected, atol=1e-5, rtol=1e-4)
    plain = FeatureTargets(model, VIEW, tmp_path / 'vit.safetensors', normalize=False)
    torch.testing.assert_close(plain.tokenize(images), source.forward_features(images)[:, 1:])
    assert plain.frozen and not plain.train().training and not any(p.requires_grad for p in plain.parameters())


def test_timm_cnn(tmp_path):
    source = timm.create_model('resnet18', num_classes=0).eval()
    torch.save(source.state_dict(), tmp_path / 'resnet.pth')
    targets = FeatureTargets(dict(type='timm', model_name='resnet18'), (64, 96), tmp_path / 'resnet.pth')
    assert (targets.target_dim, targets.downsample) == (512, (32, 32))
    images = torch.rand(2, 3, 64, 96)
    expected = source.forward_features(images).flatten(2).transpose(1, 2)
    torch.testing.assert_close(targets.tokenize(images), normalised(expected), atol=1e-5, rtol=1e-4)


def test_mmpretrain(images, tmp_path):
    config = dict(arch=dict(embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=48), img_size=VIEW, patch_size=8)
    source = VisionTransformer(**config, out_type='featmap')
    source.eval()
    state = {f'backbone.{key}': value for key, value in source.state_dict().items()}
    torch.save(dict(state_dict=dict(state, **{'head.fc.weight': torch.zeros(3, 24)})), tmp_path / 'vit.pth')
    targets = FeatureTargets(dict(type='VisionTransformer', out_type='featmap', **config), VIEW, tmp_path / 'vit.pth')
    expected = source(images)[-1].flatten(2).transpose(1, 2)
    torch.testing.assert_close(targets.tokenize(images), normalised(expected), atol=1e-5, rtol=1e-4)
    with pytest.raises(ConfigError, match="gives no feature map but a tensor .*set out_type='featmap'"):
        FeatureTargets(dict(type='VisionTransformer', **config), VIEW)


def test_our_own_encoder_from_a_pretraining_checkpoint(tiny_cae, tmp_path):
    source = tiny_cae().eval()
    torch.save(dict(state_dict=source.state_dict()), tmp_path / 'cae.pth')
    model = dict(type='mmcae.CAEViT', arch=dict(embed_dims=48, num_layers=3, num_heads=4), img_size=64, out_type='featmap')
    targets = FeatureTargets(model, 64, tmp_path / 'cae.pth')
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = source.backbone.encode(images)[:, 1:]
    torch.testing.assert_close(targets.tokenize(images), normalised(expected), atol=1e-5, rtol=1e-4)


def test_loss_in_cae_is_the_squared_error(tiny_cae):
    """Regression, with the decoder's width taken from the target."""
    from mmpretrain.structures import DataSample

    config = dict(type='mmcae.FeatureTargets', model=dict(type='mmcae.CAEViT', arch=dict(embed_dims=20, num_layers=1, num_heads=2),
                  img_size=64, out_type='featmap'), view_size=64)  # fmt: skip
    model = tiny_cae(target_generator=config, decoder=dict(num_outputs=None)).eval()
    assert isinstance(model, CAE) and model.decoder.head.out_features == 20
    images, mask = torch.rand(2, 3, 64, 64), torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[:, 1:3] = True
    losses = model.loss([images, images], [DataSample().set_mask(one) for one in mask])
    target = model.target_generator.tokenize(images)[mask.flatten(1)].view(2, 8, 20)
    expected = (model.predict(images, mask)['logits'] - target).square().mean()
    torch.testing.assert_close(losses['loss_main'], expected)
    assert 'mlm_acc' not in losses


@pytest.mark.parametrize('kind', ['timm', 'mmcae'])
def test_the_start_of_a_pretraining_leaves_the_weights_alone(kind, tiny_cae):
    """Models of all three libraries would draw new ones when they are asked to initialise themselves."""
    model = dict(
        timm=dict(type='timm', model_name='vit_tiny_patch16_224', img_size=32, **VIT),
        mmcae=dict(type='mmcae.CAEViT', arch=dict(embed_dims=20, num_layers=1, num_heads=2), img_size=32, patch_size=8, out_type='featmap'),
    )[kind]
    targets = dict(type='mmcae.FeatureTargets', model=model, view_size=32)
    cae = tiny_cae(target_generator=targets, decoder=dict(num_outputs=None))
    before = {key: value.clone() for key, value in cae.target_generator.state_dict().items()}
    cae.init_weights()
    assert before and all(torch.equal(value, before[key]) for key, value in cae.target_generator.state_dict().items())


def test_normalisation_of_the_view():
    """Channel by channel: ImageNet's unless said otherwise."""
    targets = FeatureTargets(dict(type='mmpretrain.ResNet', depth=18), 64)
    statistics = dict(mean=[0] * 3, std=[255] * 3, second_mean=list(targets.mean), second_std=list(targets.std))
    preprocessor = dict(type='mmpretrain.TwoNormDataPreprocessor', **statistics)
    targets.check_preprocessor(MODELS.build(preprocessor))
    for wrong in ([123.675, 123.675, 123.675], [123.675]):
        with pytest.raises(ConfigError, match=re.escape(f'made for {list(targets.mean)}')):
            targets.check_preprocessor(MODELS.build(dict(preprocessor, second_mean=wrong)))


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, 'w')


def test_weights_that_do_not_fit(tmp_path):
    resnet = dict(type='timm', model_name='resnet18')
    with pytest.raises(CheckpointError, match='There is no tokenizer .*none.pth.*nothing is downloaded'):
        FeatureTargets(resnet, 64, tmp_path / 'none.pth')
    torch.save(ResNet(18).state_dict(), tmp_path / 'half.pth')
    state = timm.create_model('resnet18', num_classes=0).state_dict()
    state.pop('layer3.0.conv1.weight')
    torch.save(state, tmp_path / 'half.pth')
    with pytest.raises(CheckpointError, match='1 missing: layer3.0.conv1.weight'):
        FeatureTargets(resnet, 64, tmp_path / 'half.pth')
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / 'linear.pth')
    with pytest.raises(CheckpointError, match='holds no ResNet: its keys begin with weight, bias'):
        FeatureTargets(resnet, 64, tmp_path / 'linear.pth')
    (tmp_path / 'code.pth').write_bytes(pickle.dumps(RunsCode(str(tmp_path / 'mark'))))
    with pytest.raises(CheckpointError, match='code.pth'):
        FeatureTargets(resnet, 64, tmp_path / 'code.pth')
    assert not (tmp_path / 'mark').exists()


@pytest.mark.parametrize(
    ('model', 'view', 'message'),
    [
        (dict(type='timm', model_name='vit_tiny_patch16_225'), 224, "timm has no model .*did you mean 'vit_tiny_patch16_2"),
        (dict(type='timm', model_name='resnet18', pretrained=True), 64, 'downloads nothing'),
        (dict(type='timm', model_name='resnet18', deep=1), 64, 'refuses its arguments'),
        (dict(type='timm', model_name='vit_tiny_patch16_224', depth=1), 64, 'does not take 3 channels of 64x64 pixels'),
        (dict(type='timm', model_name='resnet18'), 72, 'which they do not tile: change view_size'),
        (dict(model_name='resnet18'), 64, 'needs a type'),
    ],
)
def test_models_that_do_not_work(model, view, message):
    with pytest.raises(ConfigError, match=message):
        FeatureTargets(model, view)


def test_a_grid_that_does_not_fit_names_the_size_of_the_view(tiny_cae):
    """Patches of 14 in the model whose features are wanted, of 16 in the encoder."""
    teacher = CAEViT(arch=dict(embed_dims=16, num_layers=1, num_heads=2), img_size=56, patch_size=14)
    assert teacher.grid == (4, 4)
    config = dict(type='mmcae.CAEViT', arch=dict(embed_dims=16, num_layers=1, num_heads=2), img_size=56, patch_size=14, out_type='featmap')
    targets = FeatureTargets(config, 56)
    targets.check_view((56, 56), (4, 4))
    with pytest.raises(ConfigError, match=r'size of the second view to \(56, 56\)'):
        targets.check_view((112, 112), (4, 4))
