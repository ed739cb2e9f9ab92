"""The demo: its plan fits the real tools and configs; with tools that only pretend, it runs, goes on, stops and reports as it should."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from urllib.parse import unquote

import pytest

from mmcae.commands.jobs import JobRunner
from mmcae.utils.configs.loading import load_config

ENCODERS = ['random', 'cae', 'cae_no_align', 'mae']
CONFIGS = 'cae cae_no-align mae linear attentive finetune knn mask_rcnn upernet'
# Training leaves a checkpoint under the name that the config promises, tests leave figures that tell where they come from.
TRAIN = """
import json, pathlib, sys
options = dict(word.split('=', 1) for word in sys.argv[1:] if '=' in word)
for name, value in options.items():
    if name.endswith('checkpoint'):
        assert pathlib.Path(value).is_file(), value
folder = pathlib.Path(sys.argv[sys.argv.index('--work-dir') + 1])
(folder / 'iter_5.pth').write_text(json.dumps([sys.argv[1:]]))
(folder / pathlib.Path(sys.argv[1]).name).write_text('x = 1')
with open('calls', 'a') as calls:
    print('train', sys.argv[1].split('/')[-1], folder, file=calls)
"""
TEST = """
import json, pathlib, sys
assert pathlib.Path(sys.argv[2]).is_file(), sys.argv[2]
folder = pathlib.Path(sys.argv[sys.argv.index('--work-dir') + 1])
value = 0.5 + 0.1 * ('cae/' in str(folder)) + 0.01 * ('seed1' in str(folder))
percent = 100 * value
metrics = {'accuracy/top1': percent, 'k10/accuracy/top1': percent, 'mIoU': percent, 'coco/bbox_mAP': value, 'coco/segm_mAP': value}
(folder / 'metrics.json').write_text(json.dumps(metrics))
with open('calls', 'a') as calls:
    print('test', sys.argv[1].split('/')[-1], folder, file=calls)
"""
DRAW = """
import pathlib, sys
assert all(pathlib.Path(word).exists() for word in sys.argv[1:] if word.endswith(('.pth', '.py')))
pathlib.Path(sys.argv[sys.argv.index('--out') + 1]).write_bytes(b'picture')
"""
DATA = """
import pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index('--out') + 1])
folder.mkdir(parents=True, exist_ok=True)
(folder / 'digit_scenes.json').touch()
"""


def load_demo(root, monkeypatch):
    """tools/demo/chain.py of a checkout as a module, in that checkout's folder."""
    monkeypatch.chdir(root)
    spec = importlib.util.spec_from_file_location('chain', root / 'tools/demo/chain.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---------------------------------------------------------------- the plan


@pytest.fixture
def jobs(monkeypatch, repository, tmp_path):
    """The plan of the full demo, in the order of its dependencies."""
    runner = JobRunner(load_demo(repository, monkeypatch).plan(tmp_path / 'out', ENCODERS, 2), tmp_path / 'out')
    return {name: runner.jobs[name] for name in runner.fingerprints}


def test_every_command_names_tools_configs_and_options_that_exist(jobs, repository):
    helps = {}
    for job in jobs.values():
        _, tool, *words = job.command
        assert (repository / tool).is_file()
        if tool not in helps:
            helps[tool] = subprocess.run([sys.executable, tool, '--help'], capture_output=True, text=True, check=True).stdout
        for word in words:
            if word.startswith('--'):
                assert word in helps[tool], f'{tool} has no {word}'
            if word.startswith('configs/'):
                assert (repository / word).is_file(), word


def test_every_change_of_a_config_is_accepted(jobs):
    tried = {
        (job.command[2], job.command[job.command.index('--cfg-options') + 1 :]) for job in jobs.values() if '--cfg-options' in job.command
    }
    assert len(tried) > 20
    for config, options in tried:
        load_config(config, options)


def test_every_file_that_is_read_is_written_by_something_that_ran_before(jobs, tmp_path):
    before, read = {}, 0
    for job in jobs.values():
        before[job.name] = set(job.needs).union(*(before[name] for name in job.needs))
        for word in job.command:
            path = os.path.relpath(word.split('=')[-1], tmp_path / 'out')
            if path.endswith(('.pth', '.py')) and not path.startswith('..'):
                assert os.path.dirname(path) in before[job.name], f'{job.name} reads {path}'
                read += 1
    assert read > 60


@pytest.mark.parametrize('kind', ['mask_rcnn', 'upernet'])
def test_what_one_config_draws_is_built_by_it(jobs, tmp_path, kind):
    """MAE's models have no layer scale, which the config has."""
    checkpoints = [word for word in jobs[f'pictures/{kind}'].command if word.endswith('.pth')]
    assert len(checkpoints) == 3
    for checkpoint in checkpoints:
        words = jobs[os.path.dirname(os.path.relpath(checkpoint, tmp_path / 'out'))].command
        changes = words[words.index('--cfg-options') + 1 :]
        assert all(change.startswith(('randomness.', 'model.backbone.init_cfg')) for change in changes)


def test_random_encoders_do_not_wait_for_pretraining(jobs):
    def ancestors(name):
        return set(jobs[name].needs).union(*(ancestors(other) for other in jobs[name].needs))

    for name in jobs:
        if '/random/' in name:
            assert not any('pretrain' in other or other == 'tokenizer' for other in ancestors(name))
        if re.match(r'seed\d/(cae|mae)', name) and not name.endswith('pretrain'):
            assert '/'.join(name.split('/')[:2]) + '/pretrain' in ancestors(name)


def test_what_differs_between_encoders_is_the_encoder_alone(jobs):
    """Same config, seed and budget; only where the weights come from, and the layer scale that MAE does not have."""

    def options(encoder, protocol):
        words = jobs[f'seed1/{encoder}/{protocol}/train'].command
        return {word for word in words[words.index('--cfg-options') + 1 :] if 'init_cfg' not in word}

    for protocol in ('linear', 'attentive', 'finetune_100', 'finetune_500', 'mask_rcnn', 'upernet'):
        assert options('random', protocol) == options('cae', protocol) == options('cae_no_align', protocol)
        assert options('mae', protocol) - options('cae', protocol) == {'model.backbone.layer_scale_init_value=0'}
        assert 'randomness.seed=1' in options('cae', protocol)


# ---------------------------------------------------------------- the run, with tools that pretend


@pytest.fixture
def pretended(repository, tmp_path):
    """A checkout in which every command takes milliseconds."""
    root = tmp_path / 'checkout'
    scripts = {
        'train.py': TRAIN,
        'test.py': TEST,
        'dataset_converters/make_digit_scenes.py': DATA,
        'visualization/reconstruct.py': DRAW,
        'visualization/attention.py': DRAW,
        'visualization/predictions.py': DRAW,
        'analysis_tools/plot_curves.py': DRAW,
    }
    for name, text in scripts.items():
        (root / 'tools' / name).parent.mkdir(parents=True, exist_ok=True)
        (root / 'tools' / name).write_text(text)
    shutil.copy(repository / 'tools/demo.py', root / 'tools/demo.py')
    shutil.copytree(repository / 'tools/demo', root / 'tools/demo')
    (root / 'configs/digits').mkdir(parents=True)
    config = "train_cfg = dict(type='IterBasedTrainLoop', max_iters=5)\ntrain_dataloader = dict(dataset=dict(labels=1))\n"
    for name in CONFIGS.split():
        model = 'target_generator=dict(checkpoint=None), ' if name.startswith('cae') else ''
        start = "init_cfg=dict(type='Pretrained', checkpoint=None)" if name == 'linear' else ''
        (root / f'configs/digits/{name}_vit-digits.py').write_text(f'{config}model = dict({model}backbone=dict({start}))\n')
    (root / 'configs/digits/tokenizer_digits.py').write_text(f'{config}model = dict()\n')
    return root


@pytest.fixture
def run(pretended, monkeypatch, capsys):
    """Run the demo of that checkout in this process, to spare it the imports: exit code, what it printed, what it said at its end."""

    def run(*arguments):
        module = load_demo(pretended, monkeypatch)
        monkeypatch.setattr(sys, 'argv', ['demo.py', *arguments])
        try:
            module.main()
        except SystemExit as stop:
            code, message = (1, stop.code) if isinstance(stop.code, str) else (stop.code, '')
        else:
            code, message = 0, ''
        printed = capsys.readouterr()
        return code, printed.out, printed.err + message

    return run


def calls(root):
    return (root / 'calls').read_text().splitlines()


def test_the_demo_runs_reports_and_goes_on(pretended, run):
    (pretended / 'docs/results').mkdir(parents=True)
    published = {'mae': {'knn': {'mean': 0.28, 'std': 0.01, 'n': 3}}}
    (pretended / 'docs/results/digits_results.json').write_text(json.dumps(published))
    code, printed, message = run('--lanes', '3')
    assert code == 0, printed + message
    out = pretended / 'work_dirs/demo'

    results = json.loads((out / 'results.json').read_text())
    assert list(results) == ['random', 'cae']
    assert set(results['cae']) == {'knn', 'linear', 'attentive', 'finetune_100', 'finetune_500', 'mIoU', 'box_mAP', 'segm_mAP'}
    assert all(entry == {'mean': 0.5, 'std': 0.0, 'n': 1} for entry in results['random'].values())
    assert all(entry['mean'] == 0.6 for entry in results['cae'].values())
    assert json.loads((out / 'published_results.json').read_text()) == published
    for text in (printed, (out / 'results.md').read_text()):
        assert '| CAE | 60.0 |' in text and '| MAE | 28.0 ± 1.0 |' in text

    page = (out / 'index.html').read_text()
    links = [unquote(link) for link in re.findall(r'(?:href|src)="([^"]+)"', page)]
    pictures = [link for link in links if link.startswith('data:image/png;base64,')]
    assert len(pictures) >= 7
    assert not [link for link in links if not link.startswith('data:') and not (out / link).is_file()]
    assert 'MAE' in page and 'Every command' in page

    # Every command was printed, and can be repeated by copying it.
    commands = [line.strip() for line in printed.splitlines() if 'tools/train.py' in line]
    assert len(commands) == 2 + 6 * 2  # tokenizer, pretraining, six protocols for each of two encoders
    assert subprocess.run(commands[-1], shell=True, cwd=pretended).returncode == 0

    before = calls(pretended)
    code, printed, _ = run()
    assert code == 0 and 'are kept' in printed and calls(pretended) == before
    # A changed config repeats what depends on it, and nothing else.
    config = pretended / 'configs/digits/upernet_vit-digits.py'
    config.write_text(config.read_text() + 'x = 1\n')
    assert run()[0] == 0
    assert sorted(call.split()[1] for call in calls(pretended)[len(before) :]) == ['upernet_vit-digits.py'] * 4
    # --fresh repeats everything.
    before = calls(pretended)
    assert run('--fresh')[0] == 0
    assert len(calls(pretended)) == len(before) + 2 + 6 * 2 + 7 * 2


def test_seeds_are_averaged_over_all_encoders(pretended, run):
    code, printed, message = run('--seeds', '2', '--all-encoders', '--lanes', '4')
    assert code == 0, printed + message
    results = json.loads((pretended / 'work_dirs/demo_full/results.json').read_text())
    assert list(results) == ENCODERS
    assert results['random']['knn'] == {'mean': 0.505, 'std': 0.0071, 'n': 2}
    assert results['cae']['box_mAP'] == {'mean': 0.605, 'std': 0.0071, 'n': 2}


def test_a_failing_command_stops_the_demo_and_is_shown(pretended, run):
    tool = pretended / 'tools/train.py'
    good = tool.read_text()
    tool.write_text(good + "\nif 'cae_vit' in sys.argv[1]:\n    sys.exit('the loss is nan')\n")
    code, _, message = run()
    assert code == 1 and 'the loss is nan' in message
    assert 'configs/digits/cae_vit-digits.py --work-dir work_dirs/demo/seed0/cae/pretrain' in message
    assert 'job.log' in message and not (pretended / 'work_dirs/demo/index.html').exists()
    # The next run tries it again, and keeps what was finished.
    before = calls(pretended)
    tool.write_text(good)
    assert run()[0] == 0
    assert 'train tokenizer_digits.py work_dirs/demo/tokenizer' not in calls(pretended)[len(before) :]


def test_only_what_the_demo_wrote_is_thrown_away(pretended, run):
    (pretended / 'precious').mkdir()
    (pretended / 'precious/file').touch()
    code, _, message = run('--fresh', '--out', 'precious')
    assert code == 2 and 'precious' in message and (pretended / 'precious/file').exists()


def test_as_a_process(pretended):
    """Ctrl-C ends it and its children; what is wrong is one line."""
    (pretended / 'tools/train.py').write_text('import os, time; print(os.getpid(), file=open("pid", "w"), flush=True); time.sleep(60)')
    process = subprocess.Popen([sys.executable, 'tools/demo.py'], cwd=pretended, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if (pretended / 'pid').exists() and (pretended / 'pid').read_text().strip():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    printed, message = process.communicate(timeout=300)
    assert process.returncode == 1 and 'goes on from here' in message and 'Traceback' not in message, message
    assert '[1/' in printed and 'make_digit_scenes.py --out data/digits' in printed
    assert not os.path.exists(f'/proc/{(pretended / "pid").read_text().strip()}')


def test_arguments_are_checked(repository):
    command = [sys.executable, 'tools/demo.py', '--seeds', '0']
    assert subprocess.run(command, cwd=repository, capture_output=True).returncode == 2
