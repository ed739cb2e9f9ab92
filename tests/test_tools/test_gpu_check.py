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
        slow=([sys.executable, '-c', 'import time; time.sleep(60)'], 0.5),
        good=([sys.executable, '-c', figures, str(tmp_path / 'good.json')], 60),
    )
    monkeypatch.setattr(gpu_check, 'steps_of', lambda args: steps)
    results = gpu_check.run_steps(settings(tmp_path))
    assert [result['status'] for result in results.values()] == ['failed with exit code 3', 'not finished in time', 'done']
    assert results['good']['figures'] == dict(value=3) and 'why' in (tmp_path / 'bad.log').read_text()
    text = gpu_check.page(results, dict(device='a device'))
    assert '| bad | failed with exit code 3 |' in text and '## good' in text and 'whole folder' in text
    assert gpu_check.run_steps(settings(tmp_path, minutes=0))['good']['status'] == 'not begun: no time left'


def test_own_steps(gpu_check, tmp_path):
    rates = gpu_check.measure_rates(settings(tmp_path))
    assert set(rates) == {'float32', 'bfloat16'} and min(rates.values()) > 0
    assert gpu_check.profile_steps(settings(tmp_path))['microseconds']
    assert json.loads((tmp_path / 'trace.json').read_text())['traceEvents']
