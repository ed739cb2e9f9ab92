"""The plan of a training: figures, their text, and what is refused."""

import json
import re
from types import SimpleNamespace

import pytest
from mmengine.config import Config

from mmcae.commands.main import run_command
from mmcae.commands.plan import describe, images_of_schedule, known_images, make_plan
from mmcae.utils.configs.loading import load_config

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


@pytest.mark.parametrize(
    ('largest', 'with_cp', 'text'),
    [
        (8, False, 'fits: 8; recompute activations (model.backbone.with_cp=True)'),
        (6, True, 'fits: 6; train_dataloader.batch_size=6 optim_wrapper.accumulative_counts=3 has'),
        (0, False, 'not one image: shard the model'),
        (16, False, 'fits: 16\n'),
    ],
)
def test_remedies(cfg, figures, largest, with_cp, text):
    changed = cfg.copy()
    changed.model.backbone.with_cp = with_cp
    assert text in describe(changed, SimpleNamespace(**FULL), figures | dict(largest_batch=largest))


def test_length_of_the_schedule():
    """Epochs need the number of images; iterations do not."""

    def config(root, **schedule):
        dataset = dict(dataset=dict(data_root=root))
        return Config(dict(train_cfg=schedule, train_dataloader=dict(dataset=dataset)))

    assert images_of_schedule(config('x', max_iters=10), None, 32) == 320
    assert images_of_schedule(config('x', max_epochs=10), None, 32) is None
    assert images_of_schedule(config('x', max_epochs=10), 100, 32) == 1000
    assert known_images(config('data/imagenet/')) == 1281167 and known_images(config('mine/')) is None


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
    """Memory is counted for batches that batch norms can train on."""
    cfg = load_config(repository / 'configs/digits/upernet_vit-digits.py', ['train_dataloader.batch_size=2'])
    assert make_plan(cfg, SimpleNamespace(**FULL))['largest_batch'] > 2
