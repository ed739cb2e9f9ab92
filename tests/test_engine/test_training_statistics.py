"""Statistics while training: the figures against slow ones, the alarms, and that training goes on as without."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import mse_loss

from mmcae.engine import TrainingStatistics
from mmcae.engine.hooks.alarms import ALARMS, ringing
from mmcae.engine.hooks.training_statistics import statistics_of
from mmcae.evaluation import effective_rank, feature_std
from mmcae.evaluation.attention_weights import cross_attention, entropy, self_attention
from mmcae.registry import MODELS
from mmcae.utils.errors import ConfigError

HOOK = dict(type='mmcae.TrainingStatistics', interval=2, images=4)


def logged(runner):
    lines = [json.loads(line) for path in runner.log_dir_files for line in path.read_text().splitlines()]
    return [line for line in lines if any(name.startswith('stat/') for name in line)]


@pytest.fixture
def run(pretrain, tmp_path):
    def make(*hooks):
        runner = pretrain(*hooks)
        runner.log_dir_files = sorted((tmp_path / runner.work_dir).glob('*/vis_data/scalars.json'))
        return runner

    return make


def test_written_and_training_is_as_without(run):
    watched = run(HOOK)
    lines = logged(watched)
    assert [line['step'] for line in lines] == [2, 4]
    names = ['effective_rank', 'feature_std', 'attention_entropy', 'alignment_vs_constant', 'images_per_second', 'data_wait']
    assert set(lines[0]) - {'step'} == {f'stat/{name}' for name in names} | {
        f'stat/grad_norm/{part}' for part in ('backbone', 'regressor', 'decoder')
    }
    assert all(line['stat/images_per_second'] > 0 and 0 <= line['stat/data_wait'] <= 1 for line in lines)
    assert all(line['stat/grad_norm/backbone'] > 0 for line in lines)
    plain = run()
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(watched.model.state_dict()[name], value, rtol=0, atol=0)


def test_gradient_norms_are_those_the_optimizer_sees(run):
    steps = []

    class Recorder(TrainingStatistics):
        def read_gradients(self, runner):
            super().read_gradients(runner)
            squares = {}
            for name, parameter in runner.model.named_parameters():
                if parameter.grad is not None:
                    squares.setdefault(name.split('.')[0], []).append(parameter.grad.double().square().sum())
            steps.append({part: float(sum(values)) ** 0.5 for part, values in squares.items()})

    hook = Recorder(interval=4, images=4)
    runner = run(hook)
    (line,) = logged(runner)
    for part, norm in steps[3].items():
        assert line[f'stat/grad_norm/{part}'] == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize('method', ['BEiT', 'SimMIM', 'Data2Vec', 'IJEPA'])
def test_methods_whose_parts_are_parameters_or_do_not_learn(method):
    """A mask token is a part of its own; a target encoder has no gradient."""
    encoder = dict(type='mmcae.CAEViT', arch=dict(embed_dims=24, num_layers=2, num_heads=2), img_size=32, patch_size=8)
    settings = dict(
        BEiT=dict(target_generator=dict(type='mmcae.PixelTargets', patch_size=8)),
        SimMIM=dict(target_generator=dict(type='mmcae.PixelTargets', patch_size=8)),
        Data2Vec=dict(top_blocks=1),
        IJEPA=dict(predictor=dict(type='mmcae.JEPAPredictor', in_dims=24, embed_dims=16, num_layers=1, num_heads=2)),
    )[method]
    model = MODELS.build(dict(type=f'mmcae.{method}', backbone=encoder, **settings))
    squares = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn_like(parameter)
            squares.setdefault(name.split('.')[0], []).append(parameter.grad.double().square().sum())
    hook = TrainingStatistics(interval=1)
    hook.read_gradients(SimpleNamespace(iter=0, model=model))
    expected = {f'stat/grad_norm/{part}': float(sum(values)) ** 0.5 for part, values in squares.items()}
    assert hook.gradients == pytest.approx(expected)


def test_statistics_against_slow_ones(tiny_cae):
    from mmpretrain.structures import DataSample

    model = tiny_cae(data_preprocessor=dict(type='mmpretrain.SelfSupDataPreprocessor', mean=[0.0], std=[1.0]))
    images = torch.randn(6, 3, 64, 64)
    mask = torch.arange(16) % 2 == 0
    samples = [DataSample() for _ in range(6)]
    for sample in samples:
        sample.mask = mask.view(4, 4)
    modes = {name: module.training for name, module in model.named_modules()}
    found = statistics_of(model, dict(inputs=[images], data_samples=samples), 5)
    assert modes == {name: module.training for name, module in model.named_modules()}
    model.eval()
    images = images[:5]
    with torch.no_grad():
        features = torch.stack([model.backbone.encode(image[None])[0, 1:].mean(dim=0) for image in images])
        assert found['stat/effective_rank'] == pytest.approx(effective_rank(features), rel=1e-4)
        assert found['stat/feature_std'] == pytest.approx(feature_std(features), rel=1e-4)
        parts = model.predict(images, mask.expand(5, 16))
        target = parts['latent_target'].flatten(0, 1)
        ratio = mse_loss(parts['latent_pred'].flatten(0, 1), target) / mse_loss(target.mean(dim=0).expand_as(target), target)
        assert found['stat/alignment_vs_constant'] == pytest.approx(float(ratio), rel=1e-4)
        weights = self_attention(model.backbone, images)
        slow = [-(row * row.log()).sum() / torch.log(torch.tensor(17.0)) for row in weights.flatten(0, 2)]
        assert found['stat/attention_entropy'] == pytest.approx(float(torch.stack(slow).mean()), rel=1e-4)


def test_entropy_has_its_ends():
    assert entropy(torch.eye(5)) == 0
    assert entropy(torch.full((3, 5), 0.2)) == pytest.approx(1)


def test_cross_attention_is_what_the_regressor_uses(tiny_cae, monkeypatch):
    model = tiny_cae().eval()
    images, mask = torch.randn(2, 3, 64, 64), torch.rand(2, 16).argsort(dim=1) < 6
    weights = cross_attention(model, images, mask, 0)
    assert weights.shape == (2, 4, 6, 16)
    seen = []

    def slow_attention(q, k, v, attn_mask=None):
        shares = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)
        seen.append(shares)
        return shares @ v

    monkeypatch.setattr(torch.nn.functional, 'scaled_dot_product_attention', slow_attention)
    with torch.no_grad():
        model.predict(images, mask)
    used = next(shares for shares in seen if shares.shape[2] == 6 and shares.shape[3] == 16)
    for image in range(2):
        order = [*(~mask[image]).nonzero()[:, 0].tolist(), *mask[image].nonzero()[:, 0].tolist()]
        for column, patch in enumerate(order):
            torch.testing.assert_close(weights[image, :, :, patch], used[image, :, :, column], rtol=1e-4, atol=1e-6)
    with pytest.raises(ConfigError, match='regressor has 2'):
        cross_attention(model, images, mask, 2)
    with pytest.raises(ConfigError, match='no regressor'):
        cross_attention(model.backbone, images, mask)


@pytest.mark.parametrize(
    'alarm, history',
    [
        ('spread', {'stat/feature_std': [0.5, 0.01]}),
        ('spread', {'stat/feature_std': [0.5, 0.09]}),
        ('rank', {'stat/effective_rank': [20.0, 30.0, 14.0]}),
        ('alignment', {'stat/alignment_vs_constant': [0.9, 1.0, 1.1, 1.2]}),
        ('attention', {'stat/attention_entropy': [0.01]}),
        ('no_gradient', {'stat/grad_norm/decoder': [0.0]}),
        ('gradient_spike', {'stat/grad_norm/backbone': [1.0, 2, 1, 1, 1, 50]}),
        ('not_finite', {'stat/grad_norm/backbone': [float('nan')]}),
        ('data_wait', {'stat/data_wait': [0.5]}),
    ],
)
def test_alarms(alarm, history):
    ((found, name),) = ringing(history, progress=0.5)
    assert (found, name) == (alarm, *history)
    assert ringing(history, progress=0.5)[alarm, name]
    assert not ringing(history, progress=0.5, off=[alarm])
    learning = next(one.learning for one in ALARMS if one.name == alarm)
    assert bool(ringing(history, progress=0.01)) is not learning


def test_no_alarm_in_a_good_run():
    history = {
        'stat/feature_std': [0.3, 0.5, 0.45],
        'stat/effective_rank': [10.0, 20, 18],
        'stat/alignment_vs_constant': [1.4, 1.1, 0.7],
        'stat/attention_entropy': [1.0, 0.8, 0.7],
        'stat/grad_norm/backbone': [1.0, 0.5, 0.4, 0.3, 0.3, 0.4],
        'stat/data_wait': [0.02],
    }
    assert not ringing(history, progress=1.0)


def test_an_alarm_is_said_once(run, monkeypatch):
    monkeypatch.setattr('mmcae.engine.hooks.training_statistics.ringing', lambda *_: {('spread', 'stat/feature_std'): 'lower it'})
    from mmengine.logging import MMLogger

    told = []
    monkeypatch.setattr(MMLogger, 'warning', lambda self, text, *rest: told.append(text))
    run(dict(HOOK, interval=1))
    assert [text for text in told if 'Alarm' in text] == ['Alarm spread at iteration 1: lower it']


def test_refused():
    with pytest.raises(ConfigError, match='interval=0'):
        TrainingStatistics(interval=0)
    with pytest.raises(ConfigError, match="'rnak'.*rank"):
        TrainingStatistics(alarms=dict(rnak=False))
