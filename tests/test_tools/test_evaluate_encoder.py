"""tools/benchmarks/evaluate_encoder.py as a process: every protocol on a few images, resumed, and refusals before anything runs."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from mmcae.apis import load_encoder
from mmcae.checkpoints import ViewSpec, metadata, write_state_dict
from mmcae.commands import protocols as core
from mmcae.models import CAEViT
from mmcae.utils.errors import ConfigError, DependencyError

TOOL = 'tools/benchmarks/evaluate_encoder.py'
PROTOCOLS = ('knn', 'linear', 'attentive', 'finetune_100')


@pytest.fixture
def workplace(image_folder, tmp_path):
    """A folder with data/digits/classification as the configs expect it, with few images."""
    for split, count in (('train', 4), ('val', 1), ('test', 1)):
        image_folder(f'data/digits/classification/{split}', tuple('0123456789'), count)
    return tmp_path


@pytest.fixture
def evaluate(run_tool, workplace):
    def run(checkpoint, *arguments):
        return run_tool(TOOL, checkpoint, '--config-family', 'digits', *arguments, cwd=workplace, timeout=400)

    return run


def short(protocol):
    """Options by which a protocol has to do with 40 images and two iterations."""
    if protocol == 'knn':
        return ['knn:test_cfg.bank_dataloader.dataset.labels=40']
    changes = dict(labels='train_dataloader.dataset.labels=40', length='train_cfg.max_iters=2', when='train_cfg.val_interval=2')
    changes |= dict(saved='default_hooks.checkpoint.interval=2', schedule='param_scheduler.0.end=2', warmup='param_scheduler.0.warmup=0')
    return [f'{protocol}:{change}' for change in changes.values()]


def test_all_protocols_run_once_and_make_one_table(evaluate, workplace):
    changes = ['--cfg-options', *(option for protocol in PROTOCOLS for option in short(protocol))]
    arguments = ('random', '--protocols', *PROTOCOLS, '--out', 'out', '--lanes', '2', '--seed', '1', *changes)
    code, output = evaluate(*arguments)
    assert code == 0, output
    results = json.loads((workplace / 'out/results.json').read_text())
    assert results['checkpoint'] == 'random' and results['family'] == 'digits'
    assert set(results['protocols']) == set(PROTOCOLS)
    for name in PROTOCOLS:
        metrics = json.loads((workplace / f'out/{name}/test/metrics.json').read_text())
        prefix = 'k10/' if name == 'knn' else ''
        for metric in ('top1', 'top5'):
            assert results['protocols'][name][metric] == pytest.approx(metrics[f'{prefix}accuracy/{metric}'] / 100)
    table = (workplace / 'out/results.md').read_text()
    assert table.count('\n| ') == 1 + len(PROTOCOLS) and '| linear probe, 2,000 labels |' in table
    # The probes leave the encoder as it was; fine-tuning does not.
    encoder = torch.load(workplace / 'out/random_seed1.pth', weights_only=True)['state_dict']
    for name, frozen in (('linear', True), ('attentive', True), ('finetune_100', False)):
        state = torch.load(workplace / f'out/{name}/train/iter_2.pth', weights_only=True)['state_dict']
        assert all(torch.equal(state[f'backbone.{key}'], value) for key, value in encoder.items()) == frozen

    code, output = evaluate(*arguments)
    assert code == 0 and '7 of 7 jobs had finished before' in output


def test_an_encoder_of_another_size_by_its_own_view(evaluate, workplace):
    """One that is no square, deeper and narrower than the recipe's, with other means; and one whose heads are told on the command line."""
    view = ViewSpec(mean=(100.0,), std=(50.0,), size=(48, 64), interpolation='bilinear', crop_pct=0.9)
    model = CAEViT(dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=50), img_size=(48, 64), patch_size=16)
    write_state_dict(workplace / 'a.pth', model.state_dict(), metadata(model.spec.replaced(view=view)))
    changes = [option for protocol in ('knn', 'linear') for option in short(protocol)]
    code, output = evaluate('a.pth', '--protocols', 'knn', 'linear', '--out', 'out', '--cfg-options', *changes)
    assert code == 0, output
    assert set(json.loads((workplace / 'out/results.json').read_text())['protocols']) == {'knn', 'linear'}
    config = (workplace / 'out/configs/linear.py').read_text()
    assert "_base_ = ['mmcae::digits/linear_vit-digits.py']" in config and "'checkpoint': 'a.pth'" in config
    state = torch.load(workplace / 'out/linear/train/iter_2.pth', weights_only=True)['state_dict']
    assert all(torch.equal(state[f'backbone.{key}'], value) for key, value in model.state_dict().items())
    assert state['head.fc.weight'].shape == (10, 24)

    torch.save(dict(state_dict=model.state_dict()), workplace / 'foreign.pth')
    code, output = evaluate('foreign.pth')
    assert code == 2 and 'foreign.pth' in output.splitlines()[-1] and 'Traceback' not in output
    assert not list(workplace.glob('work_dirs/evaluation/*/*/job.log'))


def test_names_are_checked():
    digits = core.protocols_for('digits', None)
    with pytest.raises(ConfigError, match="no protocol 'linaer' here; did you mean 'linear'"):
        core.choose(digits, ['linaer'])
    assert not {'upernet', 'mask_rcnn'} & {protocol.name for protocol in core.choose(digits, None)}
    chosen = core.choose(digits, ['linear', 'knn'])
    assert [protocol.name for protocol in chosen] == ['knn', 'linear']
    with pytest.raises(ConfigError, match="no protocol 'attentive' here"):
        core.split_options(['attentive:a.b=1'], chosen)
    assert core.split_options(['a=1', 'knn:b=x:y'], chosen) == {'knn': ('a=1', 'b=x:y'), 'linear': ('a=1',)}


def test_a_protocol_without_its_library_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmseg', None)
    digits = core.protocols_for('digits', None)
    with pytest.raises(DependencyError, match='mmseg'):
        core.choose(digits, ['upernet'])
    assert core.choose(digits, ['knn'])


def test_figures_of_segmentation_and_detection(tmp_path):
    """Fractions whatever the unit of metrics.json, the main metric first, and a column for each."""
    written = {
        'knn': {'k10/accuracy/top1': 40.5, 'k10/accuracy/top5': 82.9, 'k20/accuracy/top1': 1.0},
        'upernet': {'aAcc': 91.25, 'mIoU': 50.5, 'mAcc': 60.0},
        'mask_rcnn': {'coco/segm_mAP': 0.25, 'coco/bbox_mAP': 0.375, 'coco/bbox_mAP_50': 0.9},
    }
    for name, metrics in written.items():
        (tmp_path / name / 'test').mkdir(parents=True)
        (tmp_path / name / 'test/metrics.json').write_text(json.dumps(metrics))
    family = core.protocols_for('fashion', None)
    figures = core.read_figures(tmp_path, family)
    expected = dict(knn=dict(top1=0.405, top5=0.829), upernet=dict(mIoU=0.505, aAcc=0.9125), mask_rcnn=dict(box_mAP=0.375, segm_mAP=0.25))
    assert figures == expected and [next(iter(found)) for found in figures.values()] == ['top1', 'mIoU', 'box_mAP']
    lines = core.table(figures, family).splitlines()
    assert lines[0] == '| protocol | top-1 | top-5 | mIoU | pixel accuracy | box mAP | mask mAP |'
    assert '| Mask R-CNN | - | - | - | - | 37.5 | 25.0 |' in lines
    assert core.table(dict(knn=figures['knn']), family).splitlines()[0] == '| protocol | top-1 | top-5 |'


def test_the_recipe_is_that_of_the_nearest_size(tmp_path):
    for arch, size in (('tiny', 'base'), ('small', 'base'), ('base', 'base'), ('large', 'large')):
        with torch.device('meta'):
            spec = CAEViT(arch).spec
        assert all(f'vit-{size}-' in protocol.config for protocol in core.protocols_for('imagenet', spec)), arch


def test_a_folder_of_hugging_face_is_written_once_in_our_layout(repository, tmp_path):
    folder = tmp_path / 'dinov2'
    shutil.copytree(repository / 'tests/reference/huggingface/dinov2', folder)
    path, spec = core.prepare_encoder(str(folder), 'digits', tmp_path, seed=0)
    assert spec.type == 'TimmEncoder' and load_encoder(path).spec.to_dict() == spec.to_dict()
    written = Path(path).stat().st_mtime_ns
    assert core.prepare_encoder(str(folder), 'digits', tmp_path, seed=0) == (path, spec) and Path(path).stat().st_mtime_ns == written
    os.utime(folder / 'model.safetensors', (1, 1))
    assert core.prepare_encoder(str(folder), 'digits', tmp_path, seed=0)[0] != path


def test_jobs_use_the_written_configs_and_all_gpus(tmp_path):
    model = CAEViT(dict(embed_dims=24, num_layers=2, num_heads=3), img_size=32)
    write_state_dict(tmp_path / 'a.pth', model.state_dict(), metadata(model.spec))
    path, spec = core.prepare_encoder(str(tmp_path / 'a.pth'), 'imagenet', tmp_path, seed=0)
    assert spec.embed_dims == 24
    protocols = core.protocols_for('imagenet', spec)
    configs = core.write_configs(tmp_path, protocols, spec, path)
    options = core.split_options(['randomness.seed=2'], protocols)
    jobs = {job.name: job for job in core.plan(tmp_path, path, protocols, configs, options, processes=8)}
    assert set(jobs) == {'knn/test', *(f'{name}/{step}' for name in ('linear', 'attentive', 'finetune') for step in ('train', 'test'))}
    command = jobs['finetune/train'].command
    assert command[:4] == ('python', '-m', 'torch.distributed.run', '--standalone') and '8' in command and configs['finetune'] in command
    assert str(tmp_path / 'finetune/train/epoch_100.pth') in jobs['finetune/test'].command
    assert 'randomness.seed=2' in jobs['linear/test'].command and jobs['linear/test'].needs == ('linear/train',)
