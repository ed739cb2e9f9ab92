"""CAE v2 as a method: supervised tokens, the view of the teacher, what fits and what does not, what it saves and loads."""

import pytest
import torch
from mmpretrain.structures import DataSample

from mmcae.apis import load_cae
from mmcae.checkpoints.exporting import to_official
from mmcae.models import CAEv2
from mmcae.registry import MODELS
from mmcae.utils.errors import CheckpointError, ConfigError, DataError

ENCODER = dict(type='mmcae.CAEViT', arch=dict(embed_dims=48, num_layers=2, num_heads=4), img_size=64)
TEACHER = dict(type='mmcae.Teacher', model=dict(type='mmcae.CAEViT', arch=dict(embed_dims=20, num_layers=1, num_heads=2), img_size=64))
MAP_TEACHER = dict(type='mmcae.Teacher', model=dict(type='timm', model_name='resnet10t'))
PREPROCESSOR = dict(type='mmcae.ViewPreprocessor', mean=[127.5] * 3, std=[127.5] * 3)


def build(**settings):
    torch.manual_seed(0)
    config = dict(
        type='mmcae.CAEv2',
        backbone=ENCODER,
        regressor=dict(type='mmcae.LatentContextualRegressor', in_dims=48, embed_dims=32, num_layers=1, num_heads=4),
        target_generator=TEACHER,
        data_preprocessor=PREPROCESSOR,
    )
    return MODELS.build(config | settings)


@pytest.fixture
def batch():
    return torch.randn(2, 3, 64, 64), torch.rand(2, 16).argsort(dim=1) < 6


def samples_of(mask):
    return [DataSample(mask=row.reshape(4, 4)) for row in mask]


@pytest.mark.parametrize('tokens', [('cls', 'visible', 'masked'), ('visible', 'masked'), ('masked',), ('cls',)])
def test_loss_is_what_the_public_pieces_give(batch, tokens):
    images, mask = batch
    model = build(supervise=tokens).eval()
    loss = model.loss(images, samples_of(mask))['loss_main']
    teacher = model.target_generator
    features = teacher.tokens(teacher.view_of(images, (4, 4), model.data_preprocessor))
    prediction = model.predict(images, mask)['prediction']
    torch.testing.assert_close(prediction.norm(dim=-1), torch.ones(2, 17))
    cls, visible = torch.zeros(2, 17, dtype=torch.bool), torch.cat((torch.zeros(2, 1, dtype=torch.bool), ~mask), dim=1)
    cls[:, 0] = True
    counted = sum(dict(cls=cls, visible=visible, masked=~cls & ~visible)[kind] for kind in tokens).bool()
    expected = model.loss_of(prediction[counted], features[counted])
    torch.testing.assert_close(loss, expected)


def test_learns_to_agree_with_its_teacher(batch):
    images, mask = batch
    model = build()
    model.init_weights()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = model.loss(images, samples_of(mask))['loss_main']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if 'target_generator' not in name)


def test_masked_pixels_are_seen_by_the_teacher_alone(batch):
    images, mask = batch
    model = build().eval()
    hidden = mask.view(2, 1, 4, 4).repeat_interleave(16, 2).repeat_interleave(16, 3)
    changed = torch.where(hidden, torch.randn_like(images), images)
    torch.testing.assert_close(model.predict(images, mask)['prediction'], model.predict(changed, mask)['prediction'])
    assert model.loss(images, samples_of(mask))['loss_main'] != model.loss(changed, samples_of(mask))['loss_main']


def test_a_teacher_without_cls(batch):
    images, mask = torch.randn(2, 3, 128, 128), batch[1]
    encoder = dict(ENCODER, img_size=128, patch_size=32)
    with pytest.raises(ConfigError, match=r"no cls token to compare with: set supervise=\['visible', 'masked'\]"):
        build(backbone=encoder, target_generator=MAP_TEACHER)
    model = build(backbone=encoder, target_generator=MAP_TEACHER, supervise=['visible', 'masked'])
    assert model.loss(images, samples_of(mask))['loss_main'].isfinite()


def test_registers_of_the_encoder_are_no_predictions(batch):
    """What a target has is cls and patches."""
    model = build().eval()
    assert model.predict(*batch)['prediction'].shape == (2, 17, 20)


def test_what_is_saved(batch):
    model = build()
    state = model.state_dict()
    assert not any(key.startswith('target_generator') for key in state) and not any(key.startswith('regressor.norm') for key in state)
    other = build(backbone=dict(ENCODER), supervise=['masked'])
    other.load_state_dict(state)
    assert model.description == dict(name='CAEv2', target='Teacher', num_heads=4)


def test_starts_from_a_checkpoint_of_the_same_method_alone(tiny_cae, tmp_path, batch):
    source = build()
    torch.save(dict(state_dict=source.state_dict(), meta=dict(method=source.description)), tmp_path / 'v2.pth')
    model = build(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'v2.pth')))
    model.init_weights()
    torch.testing.assert_close(model.predict(*batch), source.predict(*batch))
    cae = tiny_cae()
    torch.save(dict(state_dict=cae.state_dict(), meta=dict(method=cae.description)), tmp_path / 'v1.pth')
    wrong = build(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'v1.pth')))
    with pytest.raises(ConfigError, match='v1.pth is of CAE, the model of CAEv2: start from its encoder alone'):
        wrong.init_weights()


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(regressor=None), 'model.regressor=None: CAEv2 needs a regressor, as a dict with a type'),
        (dict(backbone=None), 'model.backbone=None: CAEv2 needs a backbone'),
        (dict(supervise=['patches']), r"supervise=\['patches'\] must name some of"),
        (dict(supervise=[]), 'must name some of'),
        (dict(predictor=dict(num_outputs=7)), 'predictor.num_outputs=7, but Teacher has targets of 20: set num_outputs=20'),
        (dict(predictor=dict(embed_dims=48)), 'predictor.embed_dims must be regressor.embed_dims=32'),
        (dict(backbone=dict(ENCODER, arch=dict(embed_dims=32, num_layers=1, num_heads=2))), 'regressor.in_dims=48, but the encoder is 32'),
        (dict(data_preprocessor=dict(type='mmpretrain.SelfSupDataPreprocessor')), 'data_preprocessor needs mean and std'),
        (dict(backbone=dict(type='mmpretrain.VisionTransformer', arch='small')), 'encodes the visible patches alone'),
        (dict(target_generator=dict(type='mmcae.PixelTargets')), 'PixelTargets compares no tokens.*mmcae.Teacher'),
    ],
)
def test_parts_that_do_not_fit(settings, message):
    with pytest.raises(ConfigError, match=message):
        build(**settings)


def test_a_model_without_teacher(batch):
    model = build(target_generator=None, predictor=dict(num_outputs=9))
    assert isinstance(model, CAEv2) and model.predict(*batch)['prediction'].shape == (2, 17, 9)
    for use in (model.loss, model.check_sample):
        with pytest.raises(ConfigError, match='CAEv2 was built without target_generator'):
            use(batch[0], samples_of(batch[1]))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda mask: mask.long() * 2, 'A mask has True or 1'),
        (lambda mask: mask.float() / 2, 'A mask has True or 1'),
        (lambda mask: mask[:1], r'need a mask \(B, N\) or \(B, h, w\), got \(2, 3, 64, 64\) and \(1, 16\)'),
        (lambda mask: mask[0], r'got .* and \(16,\)'),
        (lambda mask: mask.tolist(), 'got .* and list'),
        (lambda mask: mask.view(2, 2, 8), r'masks are \(2, 8\), but the encoder has \(4, 4\) patches'),
        (lambda mask: mask[:, :9], r'masks are \(9,\), but the encoder'),
    ],
)
def test_masks_given_by_hand(tiny_cae, change, message):
    """Zeros and ones are as good as booleans; other numbers and shapes are refused."""
    images, mask = torch.randn(2, 3, 64, 64), (torch.arange(16) < 6).repeat(2, 1)
    for model in (build().eval(), tiny_cae().eval()):
        expected = model.predict(images, mask)
        for same in (mask.long(), mask.float(), mask.view(2, 4, 4)):
            assert all(torch.equal(value, expected[name]) for name, value in model.predict(images, same).items())
        with pytest.raises((DataError, ConfigError), match=message):
            model.predict(images, change(mask))


@pytest.mark.parametrize(
    ('prediction', 'features', 'message'),
    [
        (torch.ones(2, 5, 4), torch.ones(2, 1, 4), 'differ in shape'),
        (torch.ones(2, 5, 4), torch.ones(5, 4), 'differ in shape'),
        (torch.ones(2, 5, 4), torch.zeros(2, 5, 4), '10 vectors of 10 in target_features are zero'),
        (torch.zeros(2, 5, 4), torch.ones(2, 5, 4), '10 vectors of 10 in prediction are zero'),
        (torch.ones(2, 5, 4), torch.full((2, 5, 4), torch.nan), 'in target_features are zero or not finite'),
    ],
)
def test_features_that_have_no_cosine(prediction, features, message):
    with pytest.raises(DataError, match=message):
        CAEv2.loss_of(prediction, features)


@pytest.mark.parametrize('prefix', ['module.', 'model.', 'module.model.student.'])
def test_the_authors_files_as_programs_wrap_them(prefix):
    """Also with the teacher in the file."""
    model = build(regressor=dict(type='mmcae.LatentContextualRegressor', in_dims=48, embed_dims=96, num_layers=1, num_heads=12)).eval()
    state = to_official(model.state_dict()) | {'teacher.visual.proj': torch.zeros(2, 2)}
    again = load_cae(dict(state_dict={prefix + key: value for key, value in state.items()}), num_heads=4).eval()
    images, mask = torch.randn(2, 3, 64, 64), torch.arange(16).repeat(2, 1) < 6
    torch.testing.assert_close(again.predict(images, mask), model.predict(images, mask))
    with pytest.raises(CheckpointError, match='has no regressor.mask_token: the rest of the model is incomplete'):
        load_cae({key: value for key, value in state.items() if key != 'mask_token'}, num_heads=4)
