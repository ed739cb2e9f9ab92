"""Training steps without numbers: none waits for the device but where the list says, and no tensors of host and device meet."""

from pathlib import Path

import mmseg.models  # noqa: F401
import pytest
import torch

from mmcae.apis.fake_training import FakeTraining, Uninitialised, Wait
from mmcae.utils.configs.loading import load_config
from mmcae.utils.errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
RECIPES = [  # one of each kind in its full size; those of other sizes differ in numbers alone
    'cae/cae_vit-base-p16_32xb64-amp-coslr-300e_in1k',
    'cae_v2/cae_v2_vit-tiny-p16_8xb256-amp-coslr-300e_in1k',
    'finetune/finetune_vit-base-p16_cae_32xb128-amp-100e_in1k',
    'upernet/upernet_vit-base-p16_cae-300e_8xb2-amp-160k_ade20k-512x512',
]
DIGITS = [
    f'digits/{name}'
    for name in (
        'cae_vit-digits',
        'cae_no-align_vit-digits',
        'cae_pixels_vit-digits',
        'cae_teacher_vit-digits',
        'cae_v2_vit-digits',
        'cae_dvae_vit-digits',
        'dvae_digits',
        'tokenizer_digits',
        'finetune_vit-digits',
        'linear_vit-digits',
        'attentive_vit-digits',
        'upernet_vit-digits',
    )
]

# The waits of every step that are left, by file: all in libraries, or after the update.
EVERY_STEP = {
    ('engine/amp.py', 'update_params'),
    ('mmengine/optim/optimizer/optimizer_wrapper.py', '_clip_grad'),
    ('mmpretrain/models/losses/utils.py', 'convert_to_one_hot'),
    ('mmseg/models/losses/accuracy.py', 'accuracy'),
    ('models/targets/quantizer.py', 'learn'),
}


def fake(name, *options, **settings):
    return FakeTraining(load_config(CONFIGS / f'{name}.py', options), **settings)


@pytest.mark.parametrize('name', RECIPES + DIGITS)
def test_no_wait_for_the_device(name):
    """Nor do tensors of host and device meet."""
    run = fake(name, batch_size=4, device='meta')
    assert {parameter.device.type for parameter in run.model.parameters()} == {'meta'}
    with run.active():
        for _ in range(2):  # what happens in the first step alone may be missing in the second
            run.host.reads.clear()
            assert run.step()
    assert set(run.host.reads) <= EVERY_STEP
    assert all(parameter.grad is None for parameter in run.model.parameters())  # freed after the update


def test_mixed_precision():
    run = fake('cae_v2/cae_v2_vit-tiny-p16_8xb256-amp-coslr-300e_in1k', 'optim_wrapper.dtype=bfloat16', batch_size=2)
    dtypes = []
    run.model.predictor.fc.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    with run.active():
        assert set(run.step()) == {'loss', 'loss_main'}
    assert dtypes == [torch.bfloat16]


@pytest.mark.skipif(torch.version.cuda is None, reason="needs torch's CUDA build, though no GPU")
@pytest.mark.parametrize('name', [RECIPES[0], *DIGITS])
def test_forward_passes_on_cuda(name):
    run = fake(name, batch_size=4, device='cuda')
    with run.active(), torch.no_grad(), run.optim_wrapper.optim_context(run.model):
        run.model(**run.model.data_preprocessor(dict(run.batch), True), mode='loss')


def broken(monkeypatch, loss, device='meta'):
    """A step of a model whose `losses` are changed."""
    run = fake('digits/cae_pixels_vit-digits', batch_size=2, device=device)
    original = run.model.losses
    monkeypatch.setattr(run.model, 'losses', lambda *args: loss(original(*args)))
    with run.active():
        run.step()


@pytest.mark.parametrize(
    'loss',
    [
        lambda losses: losses if losses['loss_main'] > 0 else {},
        lambda losses: dict(losses, value=losses['loss_main'].item()),
        lambda losses: dict(losses, count=losses['loss_main'].new_ones(4).nonzero()),
        lambda losses: dict(losses, loss_more=losses['loss_main'].new_ones(4)[losses['loss_main'].expand(4) > 0].sum()),
    ],
    ids=['bool', 'item', 'nonzero', 'mask as index'],
)
def test_waits_are_found(monkeypatch, loss):
    with pytest.raises(Wait) as error:
        broken(monkeypatch, loss)
    assert error.value.site[0].endswith('test_fake_training.py')


def test_tensors_of_two_devices_are_found(monkeypatch):
    with pytest.raises(Exception, match='two devices, meta and cpu'):
        broken(monkeypatch, lambda losses: dict(loss_main=losses['loss_main'] * torch.ones(2)))


def test_numbers_of_the_host_may_be_read():
    run = fake('digits/cae_vit-digits', batch_size=2)
    with run.active():
        assert int(run.batch['data_samples'][0].mask.sum()) > 0


def test_detectors_are_refused():
    pytest.importorskip('mmdet')
    with pytest.raises(ConfigError, match='depends on the objects of the images'):
        fake('digits/mask_rcnn_vit-digits')


def test_draws_within_bounds_end_whatever_the_memory_held():
    """torch repeats a truncated draw while a value lies outside; memory that is left uninitialised may hold such values for ever."""
    weight = torch.full((100, 100), 9.0)
    with Uninitialised():
        torch.nn.init.trunc_normal_(weight, std=0.02, a=-0.02, b=0.02)
        torch.nn.init.trunc_normal_(weight, std=0.02, a=-2, b=2)
    assert torch.equal(weight, torch.full((100, 100), 9.0))
