"""The algorithm: losses through data samples, masks, targets, precision, initialisation, what it saves and what it loads."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.optim import OptimWrapper
from mmpretrain.structures import DataSample
from torch import nn

from mmcae.models import CAE
from mmcae.models.methods.base import split_patches
from mmcae.models.targets.base import Target, Tokenizer
from mmcae.registry import MODELS
from mmcae.utils.errors import CheckpointError, ConfigError, DataError

VOCABULARY = 24  # of `tiny_cae`


class Brightness(Target):
    """How bright a patch is, in each of its outputs."""

    downsample = (8, 8)
    num_outputs = VOCABULARY

    def __init__(self):
        super().__init__()
        self.scale = nn.Linear(1, 1)
        self.seen = {}

    def embed(self, images):
        self.seen = dict(grad=torch.is_grad_enabled(), autocast=torch.is_autocast_enabled('cpu'), training=self.training)
        return F.avg_pool2d(images.mean(1, keepdim=True), 8).flatten(2).transpose(1, 2)

    def assign(self, vectors):
        return vectors.expand(-1, -1, VOCABULARY)


class ColourTokens(Brightness, Tokenizer):
    """Token of a patch: how bright it is, in `VOCABULARY` steps."""

    vocab_size = num_outputs = VOCABULARY

    def assign(self, vectors):
        return (vectors.squeeze(-1) * VOCABULARY).long().clamp(0, VOCABULARY - 1)


@pytest.fixture
def batch():
    """Images (2, 3, 64, 64), a tokenizer view (2, 3, 32, 32) in [0, 1], and masks (2, 16) of six patches."""
    mask = torch.rand(2, 16).argsort(dim=1) < 6
    return torch.randn(2, 3, 64, 64), torch.rand(2, 3, 32, 32), mask


def samples_of(mask, grid=(4, 4)):
    samples = []
    for row in mask:
        samples.append(DataSample(mask=row.reshape(grid)))
    return samples


# ---------------------------------------------------------------- losses


@pytest.mark.parametrize('regression', [False, True])
def test_loss_is_predict_and_losses(tiny_cae, batch, regression):
    """What training computes is what the public pieces compute."""
    images, view, mask = batch
    model = tiny_cae(target_generator=Brightness() if regression else ColourTokens()).eval()
    losses = model.loss([images, view], samples_of(mask))
    out = model.predict(images, mask)
    targets = model.target_generator.tokenize(view).flatten(1, 1 if regression else 2)
    picked = torch.stack([target[row] for target, row in zip(targets, mask, strict=True)])
    expected = model.losses(out['logits'], picked, out['latent_pred'], out['latent_target'])
    assert set(losses) == set(expected) == {'loss_main', 'loss_align', *([] if regression else ['mlm_acc'])}
    for name, value in losses.items():
        torch.testing.assert_close(value, expected[name])
    main = F.mse_loss(out['logits'], picked) if regression else F.cross_entropy(out['logits'].flatten(0, 1), picked.flatten())
    torch.testing.assert_close(losses['loss_main'], main)
    torch.testing.assert_close(losses['loss_align'], 2 * (out['latent_pred'] - out['latent_target']).square().mean())
    if not regression:
        right = (out['logits'].argmax(-1) == picked).float().mean()
        torch.testing.assert_close(losses['mlm_acc'], right)


def test_train_step(tiny_cae, batch):
    """From the pixels of both views to an update: what mmengine's loop calls, and what it logs."""
    mask = batch[2]
    normalise = dict(mean=[127.5] * 3, std=[127.5] * 3, second_mean=[0] * 3, second_std=[255] * 3)
    model = tiny_cae(target_generator=ColourTokens(), data_preprocessor=dict(type='mmcae.ViewPreprocessor', **normalise))
    pixels = [torch.randint(256, (2, 3, side, side), dtype=torch.uint8) for side in (64, 32)]
    views = [pixels[0] / 127.5 - 1, pixels[1] / 255]
    expected = model.loss(views, samples_of(mask))
    before = model.backbone.cls_token.clone()
    optimizer = OptimWrapper(torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1))
    log = model.train_step(dict(inputs=pixels, data_samples=samples_of(mask)), optimizer)
    assert set(log) == {'loss', 'loss_main', 'loss_align', 'mlm_acc'}
    torch.testing.assert_close(log['loss'], expected['loss_main'] + expected['loss_align'])
    assert not torch.equal(model.backbone.cls_token, before)


def test_weight_of_the_alignment(tiny_cae, batch):
    images, view, mask = batch
    once, thrice = (
        tiny_cae(target_generator=ColourTokens(), align_loss_weight=w).loss([images, view], samples_of(mask))['loss_align'] for w in (1, 3)
    )
    torch.testing.assert_close(thrice, 3 * once)


def test_without_alignment_its_forward_pass_is_saved(tiny_cae, batch, monkeypatch):
    images, view, mask = batch
    model, calls = tiny_cae(target_generator=ColourTokens(), align_loss_weight=0), []
    encode = type(model.backbone).encode
    monkeypatch.setattr(type(model.backbone), 'encode', lambda self, *a: calls.append(1) or encode(self, *a))
    assert set(model.loss([images, view], samples_of(mask))) == {'loss_main', 'mlm_acc'}
    assert len(calls) == 1
    assert model.predict(images, mask)['latent_target'].shape == (2, 6, 48)  # predict promises it


def test_alignment_pulls_the_prediction_not_the_target(tiny_cae, batch):
    """The target is the encoder of this very step, without gradient."""
    images, _, mask = batch
    model = tiny_cae().eval()
    out = model.predict(images, mask)
    assert not out['latent_target'].requires_grad and out['latent_pred'].requires_grad
    _, masked = split_patches(mask, images)
    torch.testing.assert_close(out['latent_target'], model.encode(images, masked))
    with torch.no_grad():
        model.backbone.blocks[0].mlp.fc1.weight.mul_(2)
    assert not torch.allclose(model.predict(images, mask)['latent_target'], out['latent_target'])


def test_target_has_drop_path_of_its_own_in_training(tiny_cae, batch):
    images, _, mask = batch
    model = tiny_cae(backbone=dict(drop_path_rate=0.5)).train()
    _, masked = split_patches(mask, images)
    targets = [model.alignment_target(images, masked) for _ in range(8)]
    assert any(not torch.equal(target, targets[0]) for target in targets)


def test_every_parameter_learns(tiny_cae, batch):
    images, view, mask = batch
    model = tiny_cae(latent_dims=32, target_generator=ColourTokens())
    sum(v for k, v in model.loss([images, view], samples_of(mask)).items() if k.startswith('loss')).backward()
    for name, parameter in model.named_parameters():
        if name.startswith('target_generator.'):
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, name
            # Attention does not change when all keys shift by the same vector.
            assert parameter.grad.abs().max() > 0 or name.endswith('norm_k.bias'), name


# ---------------------------------------------------------------- predict


def test_prediction(tiny_cae, batch):
    images, _, mask = batch
    model = tiny_cae(latent_dims=32).eval()
    out = model.predict(images, mask)
    assert {name: tuple(value.shape) for name, value in out.items()} == dict(
        logits=(2, 6, VOCABULARY), latent_pred=(2, 6, 32), latent_target=(2, 6, 32)
    )
    for name, value in model.predict(images, mask.reshape(2, 4, 4)).items():
        assert torch.equal(value, out[name])


@torch.no_grad()
def test_masked_pixels_are_not_seen(tiny_cae, batch):
    images, _, mask = batch
    model = tiny_cae().eval()
    out = model.predict(images, mask)
    hidden = mask.reshape(2, 1, 4, 1, 4, 1).expand(-1, 3, -1, 16, -1, 16).reshape(2, 3, 64, 64)
    changed = model.predict(torch.where(hidden, torch.randn_like(images), images), mask)
    torch.testing.assert_close(changed['logits'], out['logits'])
    assert not torch.allclose(changed['latent_target'], out['latent_target'])
    changed = model.predict(torch.where(hidden, images, torch.randn_like(images)), mask)
    assert not torch.allclose(changed['logits'], out['logits'])
    torch.testing.assert_close(changed['latent_target'], out['latent_target'])


@torch.no_grad()
def test_samples_are_independent(tiny_cae, batch):
    images, _, mask = batch
    model = tiny_cae().eval()
    out = model.predict(images, mask)
    for i in range(2):
        for name, value in model.predict(images[i : i + 1], mask[i : i + 1]).items():
            torch.testing.assert_close(value, out[name][i : i + 1])


@pytest.mark.parametrize('grid', [(2, 6), (4, 4), (6, 3)])
def test_grids_of_any_shape(tiny_cae, grid):
    """Built for the grid, or resized to it: images of any multiple of the patch size."""
    size = tuple(16 * n for n in grid)
    mask = torch.rand(2, grid[0] * grid[1]).argsort(dim=1) < 5
    view = torch.rand(2, 3, 8 * grid[0], 8 * grid[1])
    for img_size in (size, 64):
        model = tiny_cae(backbone=dict(img_size=img_size), target_generator=ColourTokens())
        losses = model.loss([torch.randn(2, 3, *size), view], samples_of(mask, grid))
        assert all(torch.isfinite(value) for value in losses.values())
        assert model.positions(grid).shape == (1, grid[0] * grid[1], 48)


def test_features_without_mask(tiny_cae, batch):
    """mmpretrain's mode 'tensor': what the encoder makes of whole images."""
    model = tiny_cae().eval()
    torch.testing.assert_close(model(batch[0], mode='tensor')[0], model.backbone.encode(batch[0])[:, 0])


# ---------------------------------------------------------------- masks


def test_split_patches():
    mask = torch.tensor([[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]], dtype=torch.bool)
    visible, masked = split_patches(mask, torch.zeros(2, 3, 1, 1))
    assert visible.tolist() == [[0, 3, 4], [1, 2, 3]] and masked.tolist() == [[1, 2], [0, 4]]


def test_unequal_masks(tiny_cae, batch):
    images, _, mask = batch
    mask[0, mask[0].nonzero()[0]] = False
    with pytest.raises(DataError, match=r'equally many masked patches, got \[5, 6\]'):
        tiny_cae().predict(images, mask)


@pytest.mark.parametrize('value', [False, True])
def test_nothing_or_everything_masked(tiny_cae, batch, value):
    images, _, mask = batch
    with pytest.raises(DataError, match=f'hides {16 * value} of 16 patches'):
        tiny_cae().predict(images, torch.full_like(mask, value))


# ---------------------------------------------------------------- precision


def test_mixed_precision(tiny_cae, batch):
    """Losses are computed in float32, and are those of full precision within bfloat16's three digits; the tokenizer stays outside."""
    images, view, mask = batch
    model = tiny_cae(target_generator=ColourTokens())
    full = model.loss([images, view], samples_of(mask))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        low = model.loss([images, view], samples_of(mask))
    assert model.target_generator.seen['autocast'] is False
    for name in ('loss_main', 'loss_align'):
        assert low[name].dtype == torch.float32
        assert low[name].item() == pytest.approx(full[name].item(), rel=0.03)
    (low['loss_main'] + low['loss_align']).backward()
    assert all(p.grad.dtype == torch.float32 for p in model.backbone.parameters())


def test_gradient_checkpointing_gives_the_same_gradients(tiny_cae, batch):
    images, view, mask = batch
    gradients = []
    for with_cp in (False, True):
        model = tiny_cae(backbone=dict(with_cp=with_cp), target_generator=ColourTokens())
        losses = model.loss([images, view], samples_of(mask))
        (losses['loss_main'] + losses['loss_align']).backward()
        gradients.append([p.grad for p in model.backbone.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


# ---------------------------------------------------------------- the tokenizer


def test_tokenizer_is_frozen(tiny_cae, batch):
    images, view, mask = batch
    model = tiny_cae(target_generator=ColourTokens()).train()
    tokenizer = model.target_generator
    assert not any(p.requires_grad for p in tokenizer.parameters())
    assert not tokenizer.training and model.backbone.training
    model.loss([images, view], samples_of(mask))
    assert tokenizer.seen == dict(grad=False, autocast=False, training=False)


def test_tokenizer_is_not_saved(tiny_cae):
    model = tiny_cae(target_generator=ColourTokens())
    assert not any(key.startswith('target_generator') for key in model.state_dict())
    model.load_state_dict(model.state_dict(), strict=True)


def test_without_tokenizer_there_is_nothing_to_train(tiny_cae, batch):
    with pytest.raises(ConfigError, match='give it one'):
        tiny_cae().loss([batch[0], batch[1]], samples_of(batch[2]))


# ---------------------------------------------------------------- set-up


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(regressor=dict(in_dims=32)), 'regressor.in_dims=32, but the encoder is 48 wide'),
        (dict(decoder=dict(embed_dims=32)), 'decoder.embed_dims=32 and regressor.embed_dims=48'),
        (dict(decoder=dict(num_outputs=10), target_generator=ColourTokens()), 'set num_outputs=24'),
        (dict(decoder=dict(num_outputs=10), target_generator=Brightness()), 'set num_outputs=24'),
    ],
)
def test_parts_that_do_not_fit(tiny_cae, settings, message):
    with pytest.raises(ConfigError, match=message):
        tiny_cae(**settings)


@pytest.mark.parametrize(
    ('settings', 'reason'),
    [
        (dict(use_rel_pos_bias=True), 'use_rel_pos_bias=True cannot be pretrained: the encoder sees only the visible patches'),
        (dict(window_size=2), 'window_size=2 cannot be pretrained: windows consist of all patches'),
        (dict(window_size=2, global_blocks=(0, 1, 2)), 'window_size=2 cannot be pretrained'),
        (dict(final_norm=False), 'final_norm=False cannot be pretrained: .* leave it out'),
        (dict(out_indices=(0, 1)), r'out_indices=\(0, 1\) cannot be pretrained: the blocks behind are not trained then'),
        (dict(frozen_stages=3), 'frozen_stages=3 cannot be pretrained: .* freeze fewer than its 3 blocks'),
        (dict(_delete_=True, type='mmpretrain.VisionTransformer'), 'VisionTransformer cannot: set mmcae.CAEViT'),
    ],
)
def test_encoders_that_cannot_be_pretrained_say_why(tiny_cae, settings, reason):
    if settings.pop('_delete_', False):
        with pytest.raises(ConfigError, match=reason):
            CAE(backbone=settings, regressor=dict(type='mmcae.LatentContextualRegressor'), decoder=dict(type='mmcae.CAEDecoder'))
    else:
        with pytest.raises(ConfigError, match=f'backbone.{reason}'):
            tiny_cae(backbone=settings)


@pytest.mark.parametrize('settings', [dict(out_type='featmap'), dict(frozen_stages=2), dict(out_indices=(0, 2)), dict(with_cp=True)])
def test_encoders_that_can(tiny_cae, batch, settings):
    """Other arguments change nothing, or what they say: the loss reaches every parameter that is not frozen."""
    model = tiny_cae(backbone=settings, target_generator=ColourTokens())
    sum(loss for name, loss in model.loss([batch[0], batch[1]], samples_of(batch[2])).items() if 'loss' in name).backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize('style', ['xavier', 'beit'])
def test_initialisation_of_all_parts(tiny_cae, style):
    model = tiny_cae(weight_init=style)
    model.init_weights()
    for stack in (model.backbone, model.regressor, model.decoder):
        for depth, block in enumerate(stack.blocks, 1):
            largest = block.mlp.fc2.weight.abs().max().item()
            bound = (6 / (48 + 192)) ** 0.5 if style == 'xavier' else 0.02 / (2 * depth) ** 0.5
            assert 0.98 * bound < largest <= bound + 1e-9
    assert 0 < model.regressor.mask_token.abs().max() <= 0.02
    largest = model.decoder.head.weight.abs().max()
    assert largest > 0.1 if style == 'xavier' else largest <= 0.02


def test_unknown_initialisation(tiny_cae):
    with pytest.raises(ValueError, match="got 'kaiming'"):
        tiny_cae(weight_init='kaiming').init_weights()


def test_starting_from_a_pretraining_checkpoint(tiny_cae, tmp_path):
    source = tiny_cae(latent_dims=32)
    torch.save(dict(state_dict=source.state_dict()), tmp_path / 'cae.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'cae.pth'))
    model = tiny_cae(latent_dims=32, seed=1, init_cfg=init_cfg)
    model.init_weights()
    for name, value in model.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]), name
    # A larger grid: the position tables of encoder and regressor are resized.
    model = tiny_cae(latent_dims=32, seed=1, init_cfg=init_cfg, backbone=dict(img_size=96))
    model.init_weights()
    assert model.pos_embed.shape == (1, 36, 32)
    assert not torch.equal(model.pos_embed, tiny_cae(latent_dims=32, backbone=dict(img_size=96)).pos_embed)


def test_an_encoder_is_not_a_pretraining_checkpoint(tiny_cae, tmp_path):
    torch.save(tiny_cae().backbone.state_dict(), tmp_path / 'encoder.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'encoder.pth'))
    with pytest.raises(CheckpointError, match=r'missing: pos_embed; regressor\.mask_token'):
        tiny_cae(init_cfg=init_cfg).init_weights()
    # It belongs to the encoder's own init_cfg; regressor and decoder start afresh then.
    model = tiny_cae(seed=1, backbone=dict(init_cfg=init_cfg))
    model.init_weights()
    assert torch.equal(model.backbone.cls_token, tiny_cae().backbone.cls_token)
    assert (model.regressor.norm.weight == 1).all()


def test_built_from_a_config(tiny_cae):
    config = dict(type='mmcae.CAE', backbone=dict(type='mmcae.CAEViT', arch=dict(embed_dims=16, num_layers=1, num_heads=2), img_size=32))
    parts = dict(embed_dims=16, num_layers=1, num_heads=2)
    config |= dict(
        regressor=dict(type='mmcae.LatentContextualRegressor', in_dims=16, **parts), decoder=dict(type='mmcae.CAEDecoder', **parts)
    )
    model = MODELS.build(config)
    assert model.decoder.head.out_features == 8192
    assert model.get_layer_depth('backbone.blocks.0.gamma_1') == (1, 3)
