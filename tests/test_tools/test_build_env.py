"""tools/build_env.py, as far as it can be tested without installing anything: a stand-in for pip writes down what it is asked for."""

import fcntl
import importlib.util
import json
import os
import signal
import stat
import subprocess
import sys
import time

import pytest

# Called as `python -m pip ...`, `python -c ...` or `python tools/NAME.py ...`; FAIL names a word in the arguments at which it
# fails, HANG one at which it hangs.
STAND_IN = """#!/usr/bin/env bash
if [ "$1" = -c ]; then
    case "$2" in
        *wheel_shelf*) echo /shelf;;
        *) echo;;
    esac
    exit 0
fi
[ "$1" = -m ] && shift 2
echo "$*" >> "$CALLS"
echo "Collecting something"
case "$*" in *"${FAIL:-nothing-fails}"*) echo "no such package"; exit 1;; esac
case "$*" in *"${HANG:-nothing-hangs}"*) echo $$ > "$CALLS.hanging"; sleep 600;; esac
"""


@pytest.fixture
def build_env(repository, monkeypatch):
    monkeypatch.syspath_prepend(repository / 'tools')
    spec = importlib.util.spec_from_file_location('build_env', repository / 'tools' / 'build_env.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def environment(build_env, tmp_path, monkeypatch):
    """An Environment whose Python is the stand-in, and the calls of pip made through it."""
    monkeypatch.setenv('MMCAE_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('CALLS', str(tmp_path / 'calls'))

    def create(path):
        (path / 'bin').mkdir(parents=True)
        (path / 'bin' / 'python').write_text(STAND_IN)
        (path / 'bin' / 'python').chmod(stat.S_IRWXU)

    monkeypatch.setattr(build_env.venv.EnvBuilder, 'create', lambda self, path: create(path))
    environment = build_env.Environment(tmp_path / 'venv')

    def calls():
        path = tmp_path / 'calls'
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    environment.calls = calls
    return environment


def test_builds_everything_once(environment, build_env, capsys):
    environment.build()
    calls = environment.calls()
    tools = build_env.ROOT / 'tools'
    assert calls[1].endswith(' torchvision') and calls[2] == f'{tools / "fit_torchvision.py"} --wheels /shelf'
    assert calls[3].endswith(' mmengine mmcv-lite') and calls[4] == f'{tools / "build_mmcv.py"}'
    assert all(f'install -c {build_env.CONSTRAINTS}' in call for call in calls if 'tools' not in call)
    assert all(f'{name}.txt' in calls[5] for name in ('runtime', 'detection', 'segmentation', 'tests'))
    assert len(calls) == 7 and calls[-1].endswith(f'-e {build_env.ROOT}')
    printed = capsys.readouterr().out
    assert '[5/7] mmcv, compiled from source (about 6 minutes' in printed and 'Environment ready' in printed
    assert 'build_mmcv.py' in environment.log.read_text()

    assert environment.is_complete()
    environment.build()
    assert environment.calls() == []


def test_failure_shows_the_end_of_the_output_and_the_next_run_goes_on(environment, monkeypatch):
    monkeypatch.setenv('FAIL', 'build_mmcv')
    with pytest.raises(SystemExit) as stopped:
        environment.build()
    assert 'no such package' in str(stopped.value) and 'This command failed' in str(stopped.value)
    environment.calls()
    monkeypatch.delenv('FAIL')
    environment.build()
    verbs = [call.split()[0] for call in environment.calls()]
    # Neither torch, torchvision nor mmengine again.
    assert [verb.rpartition('/')[2] for verb in verbs] == ['build_mmcv.py', 'install', 'install']


def test_changed_requirements_are_gone_through_again(environment, monkeypatch):
    environment.build()
    environment.calls()
    monkeypatch.setattr(environment, 'fingerprint', lambda: 'changed')
    assert not environment.is_complete()
    environment.build()
    assert len(environment.calls()) == 7
    assert environment.is_complete()


def test_another_python_starts_afresh(environment, monkeypatch):
    environment.build()
    leftover = environment.path / 'lib' / 'old'
    leftover.mkdir(parents=True)
    monkeypatch.setattr('sys.version', 'another')
    environment.build()
    assert not leftover.exists() and environment.python.exists()


def test_foreign_environment_is_left_alone(environment):
    (environment.path / 'bin').mkdir(parents=True)
    with pytest.raises(SystemExit, match='this tool did not make it'):
        environment.build()
    assert environment.calls() == []


def test_half_installed_packages_are_forgotten(environment):
    packages = environment.path / 'lib' / 'python3.11' / 'site-packages'
    for name, files in (('whole-1.dist-info', ('METADATA', 'RECORD')), ('half-1.dist-info', ('METADATA',))):
        (packages / name).mkdir(parents=True)
        for file in files:
            (packages / name / file).write_text('')
    environment.forget_half_installed()
    assert [path.name for path in packages.iterdir()] == ['whole-1.dist-info']


DRIVER = """
import importlib.util, stat, sys
from pathlib import Path
sys.path.insert(0, str(Path({tool!r}).parent))
spec = importlib.util.spec_from_file_location('build_env', {tool!r})
build_env = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build_env)
def create(self, path):
    (path / 'bin').mkdir(parents=True)
    (path / 'bin' / 'python').write_text({stand_in!r})
    (path / 'bin' / 'python').chmod(stat.S_IRWXU)
build_env.venv.EnvBuilder.create = create
sys.argv = ['build_env.py', '--venv', {venv!r}]
build_env.check_machine = lambda: None
build_env.main()
"""


@pytest.mark.parametrize('kill', [signal.SIGKILL, signal.SIGINT])
def test_killed_build_goes_on(build_env, environment, repository, tmp_path, kill):
    """Killed while pip is busy; the record stays readable, and the next run repeats the step and finishes."""
    code = DRIVER.format(tool=str(repository / 'tools' / 'build_env.py'), stand_in=STAND_IN, venv=str(environment.path))
    variables = dict(os.environ, HANG='install -c')
    process = subprocess.Popen([sys.executable, '-c', code], env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert any('Collecting something' in line for line in process.stdout)  # pip has begun with torch
    hanging = tmp_path / 'calls.hanging'
    while not (hanging.exists() and hanging.read_text()):
        time.sleep(0.02)
    process.send_signal(kill)
    _, errors = process.communicate(timeout=300)
    assert process.returncode != 0
    if kill == signal.SIGKILL:  # its pip lives on, which pip notices when it prints; the stand-in does not
        os.killpg(int(hanging.read_text()), signal.SIGKILL)
    if kill == signal.SIGINT:
        assert 'The same command goes on from here.' in errors and 'Traceback' not in errors
    assert json.loads(environment.record.read_text())['steps'] == ['virtual environment']
    environment.calls()
    environment.build()
    assert environment.is_complete() and len(environment.calls()) == 7


def test_second_build_waits_for_the_first(environment, build_env, tmp_path, repository):
    code = DRIVER.format(tool=str(repository / 'tools' / 'build_env.py'), stand_in=STAND_IN, venv=str(environment.path))
    environment.path.mkdir()
    with open(environment.lock_file, 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = subprocess.Popen([sys.executable, '-uc', code], stdout=subprocess.PIPE, text=True)
        assert 'Another build' in process.stdout.readline()
        assert environment.calls() == []
    output, _ = process.communicate(timeout=300)
    assert 'Environment ready' in output and process.returncode == 0


@pytest.mark.parametrize(
    ('line', 'shown'),
    [
        ('  [12/74] c++ -MMD -MF x.o.d -c x.cpp', 'compiling file 12 of 74'),
        ('Collecting torch==2.13.0 (from -r requirements)', 'Collecting torch==2.13.0 (from -r requirements)'),
        ('  Downloading torch-2.13.0.whl (200 MB)', 'Downloading torch-2.13.0.whl (200 MB)'),
        ('Installing collected packages: a, b', 'Installing collected packages: a, b'),
        ('  copying mmcv/__init__.py', None),
        ('', None),
    ],
)
def test_describe(build_env, line, shown):
    assert build_env.describe(line) == shown


def test_machine_that_cannot_build_is_told_why(build_env, monkeypatch):
    build_env.check_machine()
    monkeypatch.setattr('shutil.which', lambda name: None)
    monkeypatch.delenv('CXX', raising=False)
    with pytest.raises(SystemExit, match='apt-get install g\\+\\+'):
        build_env.check_machine()
    monkeypatch.setattr(build_env.sys, 'version_info', (3, 9, 1))
    with pytest.raises(SystemExit, match='PYTHON=python3.11'):
        build_env.check_machine()
