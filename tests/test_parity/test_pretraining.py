"""CAE against the reference, and against the authors' own tensors where they are: outputs, losses, gradients, four steps of training;
compiled and in bfloat16 too.
"""

import pytest
import torch
from reference import golden
from reference.examples import CAE
from reference.ours import model_of

from mmcae.checkpoints import convert_official, load_strictly
from mmcae.engine import CompileParts

MODELS = [*CAE, *golden.present('cae_tiny.pt', 'cae_tiny_small_decoder.pt')]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
ACCURACY = 1e-6  # a share, computed in float32 whatever the model's precision
# Eight bits of mantissa, through all blocks: relative to the largest value of an output, and to a loss.
BFLOAT16 = dict(outputs=0.03, losses=0.01)
PRECISIONS = pytest.mark.parametrize('dtype', TOLERANCE, ids=('float64', 'float32'))


@pytest.fixture(params=MODELS)
def reference(request):
    return golden.load(request.param)


def tolerance(name, dtype):
    return max(TOLERANCE[dtype], ACCURACY if name == 'mlm_acc' else 0)


@pytest.fixture
def compile_parts():
    """Compile a model's parts for one test, traced and differentiated as for the real compiler."""
    torch._dynamo.reset()
    yield lambda model: CompileParts(('backbone.encode', 'regressor', 'decoder'), backend='aot_eager').compile(model)
    torch._dynamo.reset()


def raster(mask):
    """Indices of the True cells of a mask, the slow and obvious way."""
    return torch.stack([row.nonzero().flatten() for row in mask])


def losses_of(model, reference, dtype):
    out = model.predict(reference['image'].to(dtype), reference['mask'])
    labels = reference['labels'].reshape(len(reference['mask']), -1)
    return model.losses(out['logits'], labels, out['latent_pred'], out['latent_target'])


def test_sizes_are_those_of_the_config(reference):
    config, model = reference['config'], model_of(reference, torch.float32)
    assert model.backbone.patch_size == (config['patch_size'],) * 2
    assert model.backbone.grid == (config['img_size'] // config['patch_size'],) * 2
    assert model.backbone.embed_dims == config['embed_dim']
    assert model.regressor.embed_dims == config['decoder_embed_dim']
    stacks = (model.backbone, model.regressor, model.decoder)
    assert [len(stack.blocks) for stack in stacks] == [config['depth'], config['regressor_depth'], config['decoder_depth']]
    assert model.decoder.head.out_features == config['vocab_size']
    norms = {module.eps for module in model.modules() if isinstance(module, torch.nn.LayerNorm)}
    assert norms == {config['norm_eps']}


def test_official_state_dict_loads_strictly(reference):
    """Every tensor of the authors' goes somewhere, every one of ours comes from there."""
    state = convert_official(reference['state_dict'])
    model = model_of(reference, torch.float32)
    assert set(state) == set(model.state_dict())
    load_strictly(model, state, 'golden')
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, state[key].float(), rtol=0, atol=0, msg=key)


def test_labels_are_the_tokens_at_the_masked_patches(reference):
    """The order in which targets are picked is the authors'."""
    picked = reference['token_ids'].gather(1, raster(reference['mask']))
    assert torch.equal(picked.flatten(), reference['labels'])


@PRECISIONS
@torch.no_grad()
def test_encoder(reference, dtype):
    model, image = model_of(reference, dtype), reference['image'].to(dtype)
    visible = raster(~reference['mask'])
    within = dict(rtol=0, atol=TOLERANCE[dtype])
    latents = model.backbone.encode(image, visible)
    torch.testing.assert_close(latents.double(), reference['encoder_visible'], **within)
    if 'encoder_visible_proj' in reference:
        torch.testing.assert_close(model.regressor.project(latents).double(), reference['encoder_visible_proj'], **within)
        torch.testing.assert_close(model.encode(image, visible).double(), reference['encoder_visible_proj'][:, 1:], **within)
    # The golden features of whole images are stored in float32.
    within = dict(rtol=0, atol=max(TOLERANCE[dtype], 2e-6))
    torch.testing.assert_close(model.backbone.encode(image).double(), reference['encoder_full'].double(), **within)
    model.backbone.out_type = 'raw'
    torch.testing.assert_close(model.backbone(image)[0].double(), reference['encoder_full'].double(), **within)


@PRECISIONS
@torch.no_grad()
def test_outputs_and_losses(reference, dtype):
    model = model_of(reference, dtype)
    out = model.predict(reference['image'].to(dtype), reference['mask'])
    within = dict(rtol=0, atol=TOLERANCE[dtype])
    torch.testing.assert_close(out['logits'].flatten(0, 1).double(), reference['logits'], **within)
    torch.testing.assert_close(out['latent_pred'].double(), reference['latent_predict'], **within)
    torch.testing.assert_close(out['latent_target'].double(), reference['latent_target'], **within)
    losses = losses_of(model, reference, dtype)
    for name in ('loss_main', 'loss_align', 'mlm_acc'):
        assert losses[name].item() == pytest.approx(reference[name], abs=tolerance(name, dtype)), name
    assert (losses['loss_main'] + losses['loss_align']).item() == pytest.approx(reference['loss'], abs=2 * TOLERANCE[dtype])


@PRECISIONS
def test_gradients(reference, dtype):
    model = model_of(reference, dtype)
    losses = losses_of(model, reference, dtype)
    (losses['loss_main'] + losses['loss_align']).backward()
    expected = convert_official(reference['grads'])
    parameters = dict(model.named_parameters())
    assert set(expected) == set(parameters)
    for name, parameter in parameters.items():
        torch.testing.assert_close(
            parameter.grad.double(), expected[name].double(), atol=1e-6, rtol=1e-4, msg=lambda m, n=name: f'{n}: {m}'
        )


@pytest.mark.parametrize(
    ('dtype', 'compiled'),
    [(torch.float64, False), (torch.float32, False), (torch.float32, True)],
    ids=['float64', 'float32', 'float32 compiled'],
)
def test_four_steps_of_training(reference, compile_parts, dtype, compiled):
    """A target network that lags, or is frozen, leaves this trajectory at the second step."""
    model, trajectory = model_of(reference, dtype), reference['sgd_trajectory']
    if compiled:
        compile_parts(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=trajectory['lr'])
    for number, step in enumerate(trajectory['steps']):
        losses = losses_of(model, reference, dtype)
        loss = losses['loss_main'] + losses['loss_align']
        for name, value in (('loss', loss), *losses.items()):
            within = dict(abs=tolerance(name, dtype), rel=TOLERANCE[dtype])
            assert value.item() == pytest.approx(step[name], **within), f'{name} at step {number}'
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_stale_target_would_be_noticed(reference):
    """The trajectory tells a target that is one step old from the current one: the test above means something."""
    model, steps = model_of(reference, torch.float64), reference['sgd_trajectory']['steps']
    optimizer = torch.optim.SGD(model.parameters(), lr=reference['sgd_trajectory']['lr'])
    image, mask = reference['image'].double(), reference['mask']
    labels = reference['labels'].reshape(len(mask), -1)
    stale = model.predict(image, mask)['latent_target']
    losses = model.losses(*((out := model.predict(image, mask))['logits'], labels), out['latent_pred'], stale)
    (losses['loss_main'] + losses['loss_align']).backward()
    optimizer.step()
    out = model.predict(image, mask)
    second = model.losses(out['logits'], labels, out['latent_pred'], stale)
    assert abs(second['loss_align'].item() - steps[1]['loss_align']) > 100 * TOLERANCE[torch.float32]


def test_bfloat16(reference):
    model = model_of(reference, torch.float32)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = model.predict(reference['image'].float(), reference['mask'])
        losses = losses_of(model, reference, torch.float32)
    for name, key in (('logits', 'logits'), ('latent_pred', 'latent_predict'), ('latent_target', 'latent_target')):
        wanted = reference[key].float()
        error = (out[name].float().reshape(wanted.shape) - wanted).abs().max() / wanted.abs().max()
        assert 0 < error < BFLOAT16['outputs'], name
    for name in ('loss_main', 'loss_align'):
        assert losses[name].item() == pytest.approx(reference[name], rel=BFLOAT16['losses'])
