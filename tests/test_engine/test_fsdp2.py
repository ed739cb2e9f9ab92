"""FSDP2 in a group of one process: what is shared out and what stays, that it computes the same, and what it refuses."""

import errno

import pytest
import torch
from mmengine.config import Config
from mmengine.model import ExponentialMovingAverage
from torch.distributed import HashStore, checkpoint, init_device_mesh
from torch.distributed.tensor import DTensor

from mmcae.engine.fsdp2 import NAME, check_combination, failure_of_one, shard
from mmcae.engine.launch import build_runner
from mmcae.registry import OPTIM_WRAPPERS, STRATEGIES
from mmcae.utils.errors import CheckpointError, ConfigError


@pytest.fixture
def mesh():
    torch.distributed.init_process_group('gloo', store=HashStore(), rank=0, world_size=1)
    yield init_device_mesh('cpu', (1,))
    torch.distributed.destroy_process_group()


@pytest.fixture
def batch():
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[:, ::2] = True
    return images, mask


def loss_of(parts):
    return parts['logits'].square().mean() + (parts['latent_pred'] - parts['latent_target']).square().mean()


def step(model, batch, clip=0.3):
    """One update; returns the loss and the norm of the gradients."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-3)
    settings = dict(type='mmcae.AmpOptimWrapper', dtype=None, optimizer=optimizer, clip_grad=dict(max_norm=clip))
    wrapper = OPTIM_WRAPPERS.build(settings)
    wrapper.cast_dtype = torch.float32
    loss = loss_of(model.predict(*batch))
    wrapper.update_params(loss)
    return float(loss.detach()), float(wrapper.grad_norm)


def test_names_and_shapes_stay(tiny_cae, mesh):
    model, whole = tiny_cae(), tiny_cae()
    model.target = torch.nn.Linear(3, 3).requires_grad_(False)
    shard(model, mesh)
    parameters = {name: parameter for name, parameter in model.named_parameters() if not name.startswith('target')}
    assert [(name, p.shape) for name, p in parameters.items()] == [(name, p.shape) for name, p in whole.named_parameters()]
    assert all(isinstance(parameter, DTensor) for parameter in parameters.values())
    assert not isinstance(model.target.weight, DTensor) and not isinstance(model.pos_embed, DTensor)


@pytest.mark.parametrize('with_cp', [False, True])
def test_the_same_update(tiny_cae, mesh, batch, with_cp):
    model, whole = tiny_cae(backbone=dict(with_cp=with_cp)), tiny_cae()
    shard(model, mesh)
    assert step(model, batch) == pytest.approx(step(whole, batch), rel=1e-5)
    for name, parameter in whole.named_parameters():
        torch.testing.assert_close(model.get_parameter(name).full_tensor(), parameter.detach(), rtol=1e-5, atol=1e-6)


def test_blocks_in_bfloat16(tiny_cae, mesh, batch):
    """Close to float32; outputs of blocks and parameters that are updated are float32."""
    model, whole = tiny_cae(), tiny_cae()
    shard(model, mesh, torch.bfloat16)
    seen = []
    model.backbone.blocks[0].mlp.register_forward_hook(lambda *arguments: seen.append(arguments[2].dtype))
    model.backbone.blocks[0].register_forward_hook(lambda *arguments: seen.append(arguments[2].dtype))
    assert step(model, batch) == pytest.approx(step(whole, batch), rel=0.05)
    assert seen[:2] == [torch.bfloat16, torch.float32]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_loss_scale_is_taken_off_the_parts(tiny_cae, mesh, batch):
    """As float16 on a GPU needs it: torch's scaler on sharded gradients, and a step skipped where one is infinite."""
    model, whole = tiny_cae(), tiny_cae()
    shard(model, mesh)
    for network in (model, whole):
        optimizer, scaler = torch.optim.SGD(network.parameters(), lr=0.1), torch.amp.GradScaler('cpu', init_scale=1024.0)
        scaler.scale(loss_of(network.predict(*batch))).backward()
        scaler.step(optimizer)
        scaler.update()
    for name, parameter in whole.named_parameters():
        torch.testing.assert_close(model.get_parameter(name).full_tensor(), parameter.detach(), rtol=1e-5, atol=1e-6)
    before = {name: parameter.full_tensor().clone() for name, parameter in model.named_parameters()}
    optimizer.zero_grad()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler.scale(loss_of(model.predict(*batch)) * float('inf')).backward()
    scaler.step(optimizer)
    assert all(torch.equal(parameter.full_tensor(), before[name]) for name, parameter in model.named_parameters())


@pytest.mark.parametrize(
    'settings, words',
    [
        (dict(custom_hooks=[dict(type='EMAHook')]), ('EMAHook', 'train by DDP')),
        (dict(custom_hooks=[dict(type='mmengine.EMAHook')]), ('EMAHook', 'leave the hook out')),
        (dict(custom_hooks=[dict(type='mmcae.CompileParts')]), ('CompileParts', 'leave the hook out')),
        (dict(default_hooks=dict(draw=dict(type='mmcae.DrawReconstructions'))), ('DrawReconstructions', 'leave the hook out')),
        (dict(compile=True), ('compile=True', 'leave compile out')),
        (dict(optim_wrapper=dict(type='DeepSpeedOptimWrapper')), ('DeepSpeedOptimWrapper', "'mmcae.AmpOptimWrapper'")),
        (dict(optim_wrapper=dict(type='ApexOptimWrapper')), ('ApexOptimWrapper', "'OptimWrapper' for float32")),
        (dict(optim_wrapper=dict(type='mmcae.AmpOptimWrapper', use_fsdp=True)), ('use_fsdp', 'leave it out')),
        (dict(default_hooks=dict(checkpoint=dict(type='mmcae.CheckpointHook', out_dir='s3://a/b'))), ('out_dir=s3://a/b', 'leave it out')),
    ],
)
def test_what_does_not_work_is_refused(settings, words):
    with pytest.raises(ConfigError) as error:
        check_combination(Config(settings))
    text = str(error.value)
    assert all(word in text for word in words) and NAME in text and '\n' not in text


def test_what_works_is_not_refused():
    check_combination(Config(dict(default_hooks=dict(checkpoint=dict(type='mmcae.CheckpointHook'), timer=None), custom_hooks=[])))
    check_combination(Config(dict(optim_wrapper=dict(type='mmcae.AmpOptimWrapper', dtype='bfloat16'))))


def test_a_training_is_refused_before_it_is_built(tmp_path):
    cfg = Config(dict(runner_type='FlexibleRunner', strategy=dict(type='FSDP2Strategy'), custom_hooks=[dict(type='EMAHook')]))
    with pytest.raises(ConfigError, match='EMAHook'):
        build_runner(cfg)


@pytest.mark.parametrize(
    'settings, words',
    [
        (dict(zero_optimization=dict(stage=1), state_dict_cfg='full'), 'no state_dict_cfg, zero_optimization: set param_dtype'),
        (dict(param_dtype='float16'), "param_dtype='float16' must be 'bfloat16' or None"),
        (dict(), 'tools/dist_train.sh'),
    ],
)
def test_settings_that_are_refused(tmp_path, settings, words):
    with pytest.raises(ConfigError, match=words):
        STRATEGIES.build(dict(type='mmcae.FSDP2Strategy', work_dir=str(tmp_path), **settings))


@pytest.mark.parametrize(
    'failure, kind, words',
    [
        (OSError(errno.ENOSPC, 'No space left on device'), OSError, 'No space left on device: .*epoch_1.pth'),
        (
            RuntimeError('unexpected pos 64'),
            CheckpointError,
            'process 0 failed with RuntimeError: unexpected pos 64. Look at the disk',
        ),
    ],
)
@pytest.mark.parametrize('background', [False, True])
def test_what_fails_in_one_process_is_told_of_the_checkpoint(mesh, tmp_path, monkeypatch, failure, kind, words, background):
    def fail(*_):
        raise failure

    monkeypatch.setattr(checkpoint.FileSystemWriter, 'write_data', fail)
    tensors, target = dict(weight=torch.ones(2)), dict(storage_writer=checkpoint.FileSystemWriter(tmp_path / 'partial'))
    with pytest.raises(kind, match=words), failure_of_one(tmp_path / 'epoch_1.pth'):
        checkpoint.async_save(tensors, **target).result() if background else checkpoint.save(tensors, **target)


def test_methods_with_a_momentum_encoder_are_refused(mesh, tmp_path):
    strategy = STRATEGIES.build(dict(type='mmcae.FSDP2Strategy', work_dir=str(tmp_path), env_kwargs=dict(launcher='pytorch')))
    model = torch.nn.Module()
    model.average = ExponentialMovingAverage(torch.nn.Linear(2, 2))
    with pytest.raises(ConfigError, match='averages its encoder.*train it by DDP'):
        strategy._wrap_model(model)
