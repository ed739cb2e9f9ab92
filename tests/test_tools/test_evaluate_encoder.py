"""tools/benchmarks/evaluate_encoder.py as a process: every protocol on a few images, resumed, and refusals before anything runs."""

import json

import pytest
import torch

from mmcae.commands import protocols as core
from mmcae.utils.errors import ConfigError

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
    encoder = torch.load(workplace / 'out/random_seed1.pth', weights_only=True)
    for name, frozen in (('linear', True), ('attentive', True), ('finetune_100', False)):
        state = torch.load(workplace / f'out/{name}/train/iter_2.pth', weights_only=True)['state_dict']
        assert all(torch.equal(state[f'backbone.{key}'], value) for key, value in encoder.items()) == frozen

    code, output = evaluate(*arguments)
    assert code == 0 and '7 of 7 jobs had finished before' in output


def test_a_checkpoint_that_does_not_fit_is_refused_at_once(evaluate, workplace, tiny_cae):
    other = dict(arch=dict(embed_dims=96, num_layers=4, num_heads=4), img_size=16, patch_size=4)
    model = tiny_cae(backbone=other, regressor=dict(in_dims=96))
    torch.save(dict(state_dict=model.state_dict()), workplace / 'patches.pth')
    code, output = evaluate('patches.pth')
    assert code == 2 and 'error: patches.pth' in output and 'patch_embed.proj.weight' in output and 'Traceback' not in output
    torch.save(dict(state_dict=tiny_cae().state_dict()), workplace / 'narrow.pth')
    code, output = evaluate('narrow.pth')
    assert code == 2 and 'narrow.pth has an encoder 48 wide; the configs of digits are for 96' in output
    assert not list(workplace.glob('work_dirs/evaluation/*/*/job.log'))


def test_names_are_checked():
    digits = core.protocols_for('digits', 'random')
    with pytest.raises(ConfigError, match="no protocol 'linaer' here; did you mean 'linear'"):
        core.choose(digits, ['linaer'])
    chosen = core.choose(digits, ['linear', 'knn'])
    assert [protocol.name for protocol in chosen] == ['knn', 'linear']
    with pytest.raises(ConfigError, match="no protocol 'attentive' here"):
        core.split_options(['attentive:a.b=1'], chosen)
    assert core.split_options(['a=1', 'knn:b=x:y'], chosen) == {'knn': ('a=1', 'b=x:y'), 'linear': ('a=1',)}


def test_imagenet_configs_follow_the_width_and_use_all_gpus(repository, tmp_path):
    for width, size in ((768, 'base'), (1024, 'large')):
        path = tmp_path / f'{size}.pth'
        stub = {'blocks.0.attn.qkv.weight': torch.zeros(1), 'patch_embed.proj.weight': torch.zeros(1)}
        torch.save(stub | {'cls_token': torch.zeros(1, 1, width)}, path)
        protocols = core.protocols_for('imagenet', str(path))
        assert all(f'vit-{size}-' in protocol.config for protocol in protocols)
        options = core.split_options(['randomness.seed=2'], protocols)
        jobs = {job.name: job for job in core.plan(tmp_path, str(path), protocols, options, processes=8)}
        assert set(jobs) == {'knn/test', *(f'{name}/{step}' for name in ('linear', 'attentive', 'finetune') for step in ('train', 'test'))}
        assert (
            jobs['finetune/train'].command[:4] == ('python', '-m', 'torch.distributed.run', '--standalone')
            and '8' in jobs['finetune/train'].command
        )
        last = f'epoch_{100 if size == "base" else 50}.pth'
        assert str(tmp_path / 'finetune/train' / last) in jobs['finetune/test'].command
        assert 'randomness.seed=2' in jobs['linear/test'].command and jobs['linear/test'].needs == ('linear/train',)


def test_a_plain_vit_is_known_by_its_lack_of_layer_scale(repository, tmp_path):
    from mmcae.models import CAEViT

    encoder = CAEViT(arch=dict(embed_dims=96, num_layers=4, num_heads=4), img_size=32, patch_size=8, layer_scale_init_value=0)
    torch.save(encoder.state_dict(), tmp_path / 'plain.pth')
    config = repository / 'configs/digits/finetune_vit-digits.py'
    checkpoint, options = core.prepare_encoder(str(tmp_path / 'plain.pth'), config, tmp_path, seed=0)
    assert options == ('model.backbone.layer_scale_init_value=0',)
