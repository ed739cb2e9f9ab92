"""tools/gpu_check.py as a program: its steps are run, failures are noted, everything lands in one folder."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture
def gpu_check(repository):
    spec = importlib.util.spec_from_file_location('gpu_check', repository / 'tools/gpu_check.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def settings(tmp_path, **changes):
    return SimpleNamespace(**dict(device='cpu', tiny=True, out=tmp_path, minutes=5) | changes)


def test_steps(gpu_check, tmp_path):
    assert list(gpu_check.steps_of(settings(tmp_path))) == ['tests', 'rates', 'profile', 'step_2', 'loader']
    full = gpu_check.steps_of(settings(tmp_path, device='cuda', tiny=False))
    assert [name for name in full if name.startswith('step')] == [f'step_{b}{c}' for b in (64, 128, 256) for c in ('', '_compiled')]
    for command, _ in full.values():
        assert all(Path(part).exists() for part in command if part.endswith('.py'))


def test_failures_are_noted_and_the_rest_goes_on(gpu_check, tmp_path, monkeypatch):
    figures = 'import json, sys; json.dump(dict(value=3), open(sys.argv[1], "w"))'
    steps = dict(
        bad=([sys.executable, '-c', 'print("why"); raise SystemExit(3)'], 60),
        slow=([sys.executable, '-c', 'import time; time.sleep(60)'], 0.2),
        good=([sys.executable, '-c', figures, str(tmp_path / 'good.json')], 60),
    )
    monkeypatch.setattr(gpu_check, 'steps_of', lambda args: steps)
    results = gpu_check.run_steps(settings(tmp_path))
    assert [result['status'] for result in results.values()] == ['failed with exit code 3', 'not finished in time', 'done']
    assert results['good']['figures'] == dict(value=3) and 'why' in (tmp_path / 'bad.log').read_text()
    text = gpu_check.page(results, dict(device='a device'))
    assert '| bad | failed with exit code 3 |' in text and '## good' in text and 'whole folder' in text
    assert gpu_check.run_steps(settings(tmp_path, minutes=0))['good']['status'] == 'not begun: no time left'


def test_the_bars_of_a_gpu(gpu_check):
    seconds = {'mmpretrain fp16': [0.4, 0.4], 'mmcae bf16, compiled': [0.2, 0.2]}
    rows = [{'contender': 'mmcae bf16, compiled', 'of matrix rate': share} for share in ('9%', None)]
    figures = dict(seconds=seconds, rows=rows, complementary_vs_plain=dict(predictions_per_second=1.4))
    found = gpu_check.bars(dict(tests=dict(status='done'), step_64_compiled=dict(figures=figures), step_64=dict(status='failed')))
    assert [row['found'] for row in found] == ['2.00 times', '9%', '1.40 times']
    assert gpu_check.bars(dict(step_2=dict(figures=dict(figures, seconds=dict(mmcae=[1.0]))))) == []


def test_the_whole_check(repository, tmp_path, run_tool):
    """As one command, without a GPU: every step is done; one JSON, one page that says what to send back, a trace."""
    code, output = run_tool('tools/gpu_check.py', '--device', 'cpu', '--tiny', '--out', tmp_path, timeout=1600)
    assert code == 0, output + (tmp_path / 'tests.log').read_text()
    content = json.loads((tmp_path / 'results.json').read_text())
    assert {name: step['status'] for name, step in content['steps'].items()} == dict.fromkeys(
        ('tests', 'rates', 'profile', 'step_2', 'loader'), 'done'
    )
    assert min(content['steps']['rates']['figures'].values()) > 0 and content['steps']['profile']['figures']['microseconds']
    assert json.loads((tmp_path / 'trace.json').read_text())['traceEvents']
    page = (tmp_path / 'index.md').read_text()
    assert 'Send the whole folder back' in page and '| mmpretrain ' in page and '## loader' in page
    assert ' passed' in (tmp_path / 'tests.log').read_text() and 'send the whole folder back' in output
