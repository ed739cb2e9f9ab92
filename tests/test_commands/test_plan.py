"""The plan of a training: figures, their text, and what is refused."""

import json
import re
from types import SimpleNamespace

import pytest
from mmengine.config import Config

from mmcae.apis.planning import GPUS
from mmcae.commands.main import run_command
from mmcae.commands.plan import describe, images_of_schedule, known_images, make_plan, shown
from mmcae.utils.configs.loading import load_config
from mmcae.utils.errors import ConfigError

FULL = dict(gpus=4, gpu='H100', share=0.5, images=1000, images_per_core=500.0, kilobytes=100.0, config='CONFIG')


@pytest.fixture(scope='module')
def cfg(repository):
    return load_config(repository / 'configs/digits/cae_pixels_vit-digits.py', ['train_dataloader.batch_size=16'])


@pytest.fixture(scope='module')
def figures(cfg):
    return make_plan(cfg, SimpleNamespace(**FULL))


def test_figures_agree_with_each_other(cfg, figures):
    assert figures['effective_batch'] == 4 * 16
    speed = 4 * 0.5 * 989e12 / (2 * figures['multiply_adds_step'])
    assert figures['images_per_second'] == pytest.approx(speed)
    assert figures['loader_cores_per_gpu'] == pytest.approx(speed / 4 / 500)
    assert figures['read_per_second'] == pytest.approx(speed * 1e5)
    assert figures['images_of_schedule'] == cfg.train_cfg.max_iters * 64
    assert figures['hours'] == pytest.approx(figures['images_of_schedule'] / speed / 3600)
    assert figures['gpu_hours'] == pytest.approx(4 * figures['hours'])
    assert figures['largest_batch'] > 16 and figures['memory']['capacity'] == pytest.approx(72e9)


def test_text(cfg, figures):
    assert 'say --images' in describe(cfg, SimpleNamespace(**FULL), figures | dict(hours=None))
    text = describe(cfg, SimpleNamespace(**FULL), figures)
    assert text.startswith('CONFIG on 4 x H100')
    assert 'effective batch: 64, lr 0.' in text and 'GPU-hours' in text
    assert 'images of 32x32 pixels (height x width)\n' in text
    assert '8 objects in each' in describe(cfg, SimpleNamespace(**FULL), figures | dict(objects_per_image=8))


RECOMPUTE, SHARE = 'model.backbone.with_cp=True', 'runner_type=FlexibleRunner strategy.type=mmcae.FSDP2Strategy'
ACCUMULATE = 'train_dataloader.batch_size={} optim_wrapper.accumulative_counts={} and {} times the iterations (effective batch {})'


@pytest.mark.parametrize(
    ('largest', 'batch', 'changes', 'text'),
    [
        (9, 16, {}, f'fits: 9; recompute activations: {RECOMPUTE}, or accumulate gradients: {ACCUMULATE.format(8, 2, 2, 64)}\n'),
        (7, 13, dict(with_cp=True), f'fits: 7; accumulate gradients: {ACCUMULATE.format(7, 2, 2, 56)}\n'),
        (0, 16, dict(with_cp=True), f'fits: 0, not one image; share the model out over the GPUs: {SHARE}\n'),
        (0, 16, dict(type='mmpretrain.VisionTransformer'), f'fits: 0, not one image; share the model out over the GPUs: {SHARE}\n'),
        (16, 16, {}, 'fits: 16\n'),
    ],
)
def test_remedies(cfg, figures, largest, batch, changes, text):
    changed = cfg.copy()
    changed.model.backbone.update(changes)
    figures = figures | dict(largest_batch=largest, batch_size=batch, effective_batch=4 * batch)
    assert text in describe(changed, SimpleNamespace(**FULL), figures)


def test_remedies_are_changes_that_it_takes(repository, monkeypatch):
    monkeypatch.setitem(GPUS, 'H100', (0.02, 989))
    config, settings = repository / 'configs/digits/cae_pixels_vit-digits.py', SimpleNamespace(**FULL)

    def planned(*changes):
        cfg = load_config(config, ['train_dataloader.batch_size=64', 'optim_wrapper.accumulative_counts=2', *changes])
        return make_plan(cfg, settings), describe(cfg, settings, make_plan(cfg, settings))

    whole, text = planned()
    assert whole['largest_batch'] < 64 and RECOMPUTE in text
    changes = re.search('train_dataloader.batch_size=\\S+ optim_wrapper.accumulative_counts=\\S+', text)[0].split()
    small, text = planned(*changes)
    assert small['batch_size'] <= small['largest_batch'] and small['effective_batch'] == whole['effective_batch'] == 4 * 64 * 2
    assert planned(RECOMPUTE)[0]['largest_batch'] > whole['largest_batch']
    shared, text = planned(*SHARE.split())
    assert shared['largest_batch'] > whole['largest_batch'] and 'shared out over 4 GPUs' in text


@pytest.mark.parametrize(
    ('number', 'decimals', 'text'),
    [
        (1234.5, None, '1,234'),
        (2.84, None, '2.8'),
        (0.4, None, '0.4'),
        (0.0612, 1, '0.06'),
        (0.25, 2, '0.25'),
        (0, 2, '0.00'),
        (1e-9, 1, '0.000'),
    ],
)
def test_small_figures_are_no_zeros(number, decimals, text):
    assert shown(number, decimals) == text


def test_length_of_the_schedule():
    """Epochs need the number of images; iterations do not."""

    def config(root, **schedule):
        dataset = dict(dataset=dict(data_root=root))
        return Config(dict(train_cfg=schedule, train_dataloader=dict(dataset=dataset)))

    assert images_of_schedule(config('x', max_iters=10), None, 32) == 320
    assert images_of_schedule(config('x', max_epochs=10), None, 32) is None
    assert images_of_schedule(config('x', max_epochs=10), 100, 32) == 1000
    again = config('x', max_epochs=10)
    again.train_dataloader.dataset.update(type='RepeatDataset', times=3)
    assert images_of_schedule(again, 100, 32) == 3000


@pytest.mark.parametrize(
    ('root', 'images'),
    [
        ('data/imagenet/', 1281167),
        ('s3://bucket/ImageNet-1k/train', 1281167),
        ('data/ade/ADEChallengeData2016', 20210),
        ('data/VOCdevkit/VOC2012', 10582),
        ('data/coco/', 117266),
        ('mine/', None),
        ('jade/photos', None),
        ('data/imagenet100', None),
        ('data/imagenet-21k', None),
        ('data/coconuts', None),
    ],
)
def test_well_known_data_sets(root, images):
    """By whole names of folders, and the part that is taken."""
    dataset = Config(dict(type='ImageNet', data_root=root))
    assert known_images(dataset) == images == known_images(Config(dict(dataset=dataset)))
    assert known_images(Config(dict(labels=0.01, dataset=dataset))) == (images and round(images / 100))
    assert known_images(Config(dict(labels=500, dataset=dataset))) == 500


def test_the_learning_rate_is_that_of_the_training(cfg, figures):
    changed, lr = cfg.copy(), cfg.optim_wrapper.optimizer.lr
    changed.auto_scale_lr = dict(enable=True, base_batch_size=256)
    assert f"effective batch: 64, lr {lr / 4:g} (the config's {lr:g} x 0.25)\n" in describe(changed, SimpleNamespace(**FULL), figures)


def test_command(repository, tmp_path, capsys):
    path = tmp_path / 'plan.json'
    config = repository / 'configs/digits/cae_pixels_vit-digits.py'
    run_command('plan', [str(config), '--gpus', '2', '--json', str(path), 'train_dataloader.batch_size=8'], 'mmcae plan')
    output = capsys.readouterr().out
    assert 'on 2 x A100' in output and 'the whole schedule' in output
    assert json.loads(path.read_text())['effective_batch'] == 16


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--gpu', 'H10'], "--gpu H10: known are .*did you mean 'H100'"),
        (['--gpus', '0'], '--gpus 0'),
        (['--share', '1.5'], '--share 1.5'),
        (['--kilobytes', '0'], '--kilobytes 0'),
        (['--json', 'plan.txt'], '--json plan.txt'),
    ],
)
def test_refused(repository, capsys, arguments, message):
    with pytest.raises(SystemExit) as error:
        run_command('plan', [str(repository / 'configs/digits/cae_pixels_vit-digits.py'), *arguments], 'mmcae plan')
    assert error.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_batch_of_two_with_batch_norms(repository):
    """Memory is counted for batches that batch norms can train on, and without the GPU that mmengine's mixed precision asks for."""
    options = ['train_dataloader.batch_size=2', 'optim_wrapper.type=AmpOptimWrapper']
    cfg = load_config(repository / 'configs/digits/upernet_vit-digits.py', options)
    assert make_plan(cfg, SimpleNamespace(**FULL))['largest_batch'] > 2


def test_detectors_have_defaults_of_their_own(repository):
    settings = dict(FULL, share=None, images_per_core=None, kilobytes=None)
    figures = [
        make_plan(load_config(repository / f'configs/digits/{name}_vit-digits.py'), SimpleNamespace(**settings))
        for name in ('mask_rcnn', 'cae_pixels')
    ]
    assert [plan['share'] for plan in figures] == [0.08, 0.35]
    assert [plan['images_per_second'] / plan['loader_cores_per_gpu'] / 4 for plan in figures] == pytest.approx([45, 570])


def test_deepspeed_is_refused(repository):
    cfg = load_config(repository / 'configs/cae/cae_vit-large-p16_32xb64-deepspeed-amp-coslr-1600e_in1k.py')
    with pytest.raises(ConfigError, match="DeepSpeed's step is its own.* Plan the same model"):
        make_plan(cfg, SimpleNamespace(**FULL))
