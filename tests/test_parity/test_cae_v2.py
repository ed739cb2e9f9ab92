"""CAE v2 against the reference, and against the authors' own tensors where they are: outputs, losses, gradients, four steps of training,
CLIP's image tower, and the authors' layout in and out.
"""

import pytest
import torch
from mmpretrain.structures import DataSample
from reference import cae_v2, golden
from reference.examples import CAE_V2
from reference.ours import model_of

from mmcae.checkpoints import convert_official, load_strictly, to_official
from mmcae.models import CAEv2, Teacher
from mmcae.models.targets.base import Target

MODELS = [*CAE_V2, *golden.present('caev2/caev2_tiny.pt', 'caev2/caev2_tiny_small_decoder.pt')]
TOWERS = ['clip', *golden.present('caev2/clip_visual_tiny.pt')]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
PRECISIONS = pytest.mark.parametrize('dtype', TOLERANCE, ids=('float64', 'float32'))


class Given(Target):
    """A teacher that says what it was told."""

    reads_encoder_view = has_cls = True
    loss_kind = 'cosine'
    downsample = (16, 16)
    loss = Teacher.loss

    def __init__(self, features):
        super().__init__()
        self.features, self.num_outputs = features, features.shape[-1]

    def view_of(self, images, grid, preprocessor):
        return images

    def check_preprocessor(self, preprocessor):
        pass

    def tokens(self, view):
        return self.features


@pytest.fixture(params=MODELS)
def reference(request):
    return golden.load(request.param)


def training_loss(model, reference, dtype):
    """Through the entry that training uses."""
    model.target_generator = Given(reference['target_features'].to(dtype))
    samples = [DataSample(mask=mask) for mask in reference['mask']]
    return model.loss(reference['image'].to(dtype), samples)['loss_main']


@PRECISIONS
@torch.no_grad()
def test_outputs(reference, dtype):
    model, image, mask = model_of(reference, dtype), reference['image'].to(dtype), reference['mask']
    assert isinstance(model, CAEv2)
    within = dict(rtol=0, atol=TOLERANCE[dtype])
    visible, masked = (torch.stack([row.nonzero().flatten() for row in part]) for part in (~mask, mask))
    torch.testing.assert_close(model.backbone.encode(image, visible).double(), reference['encoder_visible'], **within)
    if 'encoder_visible_proj' in reference:
        torch.testing.assert_close(model.encode(image, visible).double(), reference['encoder_visible_proj'], **within)
    parts = model.forward_parts(image, visible, masked)
    torch.testing.assert_close(parts['prediction'].double(), reference['head'], **within)
    out = model.predict(image, mask)
    torch.testing.assert_close(out['regressed'].double(), reference['regressed'], **within)
    torch.testing.assert_close(out['prediction'].double(), reference['prediction_raster'], **within)


@PRECISIONS
@torch.no_grad()
def test_losses(reference, dtype):
    model = model_of(reference, dtype)
    out = model.predict(reference['image'].to(dtype), reference['mask'])
    loss = model.loss_of(out['prediction'], reference['target_features'].to(dtype))
    assert loss.item() == pytest.approx(reference['loss'], abs=TOLERANCE[dtype])
    assert training_loss(model, reference, dtype).item() == pytest.approx(reference['loss'], abs=TOLERANCE[dtype])


@pytest.mark.parametrize('kind', ['cls', 'visible', 'masked'])
def test_loss_of_some_tokens(reference, kind):
    """The authors display the three kinds one by one."""
    model = model_of(reference, torch.float64)
    model.supervise = (kind,)
    assert training_loss(model, reference, torch.float64).item() == pytest.approx(reference[f'loss_{kind}'], abs=1e-9)


@PRECISIONS
def test_gradients(reference, dtype):
    model = model_of(reference, dtype)
    training_loss(model, reference, dtype).backward()
    expected = convert_official(reference['grads'])
    parameters = dict(model.named_parameters())
    assert set(expected) == set(parameters)
    for name, parameter in parameters.items():
        torch.testing.assert_close(
            parameter.grad.double(), expected[name].double(), atol=1e-6, rtol=1e-4, msg=lambda m, n=name: f'{n}: {m}'
        )


@PRECISIONS
def test_four_steps_of_training(reference, dtype):
    model, trajectory = model_of(reference, dtype), reference['sgd_trajectory']
    optimizer = torch.optim.SGD(model.parameters(), lr=trajectory['lr'])
    for expected in trajectory['steps']:
        loss = training_loss(model, reference, dtype)
        assert loss.item() == pytest.approx(expected['loss'], abs=TOLERANCE[dtype])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_layout_in_and_out(reference):
    """Every tensor of the authors' comes back, but for the norm of the regressor that no one reads."""
    theirs = reference['state_dict']
    model = model_of(reference, torch.float32)
    assert set(convert_official(theirs)) == set(model.state_dict())
    back = to_official(model.state_dict())
    assert list(back)[-1].startswith('decoder.'), "the authors' loader looks at the last key"
    assert set(back) == set(theirs)
    for name in theirs:
        if not name.startswith('regresser.norm.'):
            torch.testing.assert_close(back[name], theirs[name].float(), rtol=0, atol=0, msg=name)
    load_strictly(model, convert_official(back), 'round trip')


@pytest.mark.parametrize('name', TOWERS)
def test_clip(name, tmp_path):
    """The tower as teacher, at the size of its table and at another one, with the projection."""
    tower = golden.load(name)
    torch.save(tower['state_dict'], tmp_path / 'clip.pth')
    heads = tower['config'].get('heads') or tower['config']['width'] // 64
    for image, tokens in (('image', 'tokens'), ('image_resized', 'tokens_resized')):
        model = dict(type='clip', num_heads=heads, img_size=tuple(tower[image].shape[-2:]))
        teacher = Teacher(model, tmp_path / 'clip.pth', projected=True)
        torch.testing.assert_close(teacher.tokens(tower[image].float()), tower[tokens], rtol=0, atol=1e-5)
        assert teacher.num_outputs == tower['config']['output_dim'] and teacher.has_cls
    grid = tower['config']['grid']
    expected = cae_v2.clip_positions(tower['state_dict']['visual.positional_embedding'].float(), tower['config']['grid_src'], grid)
    torch.testing.assert_close(teacher.model.model.pos_embed[0], expected)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
