"""tools/fit_torchvision.py: a wheel without operators becomes one that can be imported, and nothing else of it changes."""

import base64
import hashlib
import importlib.util
import subprocess
import sys
import zipfile

import pytest

# A torchvision in miniature, whose operators are never there.
WHEEL = {
    'torchvision/__init__.py': 'from . import _meta_registrations, extension\nfrom .version import __version__\n',
    'torchvision/extension.py': 'def _has_ops():\n    return False\n',
    'torchvision/version.py': "__version__ = '9.1.0+cu130'\ngit_version = 'abc'\n",
    'torchvision/_meta_registrations.py': 'import torch.library\n\nimport torchvision.extension\n\n\n'
    '@torch.library.register_fake("torchvision::nms")\ndef meta_nms(boxes):\n    return boxes\n',
    'torchvision-9.1.0.dist-info/METADATA': 'Metadata-Version: 2.1\nName: torchvision\nVersion: 9.1.0\n',
    'torchvision-9.1.0.dist-info/WHEEL': 'Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: false\nTag: cp311-cp311-linux_x86_64\n',
}


def digest(content):
    return 'sha256=' + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip('=')


@pytest.fixture
def fit_torchvision(repository):
    spec = importlib.util.spec_from_file_location('fit_torchvision', repository / 'tools' / 'fit_torchvision.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def wheel(tmp_path):
    def write(**changes):
        path = tmp_path / 'torchvision-9.1.0-cp311-cp311-linux_x86_64.whl'
        with zipfile.ZipFile(path, 'w') as archive:
            files = WHEEL | changes
            record = [f'{name},{digest(text.encode())},{len(text)}\n' for name, text in files.items()]
            files['torchvision-9.1.0.dist-info/RECORD'] = ''.join([*record, 'torchvision-9.1.0.dist-info/RECORD,,\n'])
            for name, text in files.items():
                archive.writestr(name, text)
        return path

    return write


def imports(folder):
    """Import the torchvision in a folder in a fresh Python."""
    command = [sys.executable, '-c', 'import torchvision; print(torchvision.__version__, torchvision.__file__)']
    return subprocess.run(command, env=dict(PYTHONPATH=str(folder)), capture_output=True, text=True)


def test_repacked_wheel_can_be_imported(fit_torchvision, wheel, tmp_path):
    with zipfile.ZipFile(wheel()) as archive:
        archive.extractall(tmp_path / 'before')
    assert fit_torchvision.PROBLEM in imports(tmp_path / 'before').stderr  # what torch says, from torch itself
    (tmp_path / 'wheels').mkdir()
    fit_torchvision.repack(wheel(), tmp_path / 'wheels')
    (new,) = (tmp_path / 'wheels').iterdir()
    assert new.name == 'torchvision-9.1.0+without.ops-cp311-cp311-linux_x86_64.whl'
    with zipfile.ZipFile(new) as archive:
        archive.extractall(tmp_path / 'after')
    done = imports(tmp_path / 'after')
    assert done.stdout.split() == ['9.1.0+without.ops', str(tmp_path / 'after/torchvision/__init__.py')], done.stderr
    # pip finds it whole: metadata with the new version, and the right hash of every file.
    metadata = tmp_path / 'after' / 'torchvision-9.1.0+without.ops.dist-info'
    assert 'Version: 9.1.0+without.ops\n' in (metadata / 'METADATA').read_text()
    rows = dict(line.split(',')[:2] for line in (metadata / 'RECORD').read_text().splitlines())
    for name, found in rows.items():
        if not name.endswith('RECORD'):
            assert found == digest((tmp_path / 'after' / name).read_bytes()), name
    assert len(rows) == len(WHEEL) + 1
    unchanged = set(WHEEL) - {'torchvision/version.py', 'torchvision/_meta_registrations.py'}
    for name in unchanged:
        if name.startswith('torchvision/'):
            assert (tmp_path / 'after' / name).read_text() == WHEEL[name]


def test_another_torchvision_is_not_guessed_at(fit_torchvision, wheel, tmp_path):
    path = wheel(**{'torchvision/_meta_registrations.py': 'import torch\n'})
    (tmp_path / 'wheels').mkdir()
    with pytest.raises(SystemExit, match='torchvision has changed: no line of its _meta_registrations.py'):
        fit_torchvision.repack(path, tmp_path / 'wheels')
    assert not list((tmp_path / 'wheels').iterdir())


@pytest.mark.parametrize(
    ('errors', 'exchanged', 'message'),
    [
        ([''], 0, None),
        (['operator torchvision::nms does not exist', ''], 1, None),
        (['operator torchvision::nms does not exist', 'still broken'], 1, 'still broken'),
        (['compiled with different CUDA major versions'], 0, 'have pip install both from one index'),
    ],
)
def test_only_what_does_not_fit_is_exchanged(fit_torchvision, monkeypatch, tmp_path, errors, exchanged, message):
    calls = []
    monkeypatch.setattr(fit_torchvision, 'problem', lambda: errors.pop(0))
    monkeypatch.setattr(fit_torchvision, 'exchange', calls.append)
    monkeypatch.setattr('sys.argv', ['fit_torchvision.py', '--wheels', str(tmp_path)])
    if message:
        with pytest.raises(SystemExit, match=message):
            fit_torchvision.main()
    else:
        fit_torchvision.main()
    assert len(calls) == exchanged and not errors


def test_wheel_that_is_there_is_installed_without_asking_the_index(fit_torchvision, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(fit_torchvision.metadata, 'version', lambda name: '9.1.0+cu130')
    monkeypatch.setattr(fit_torchvision, 'run', lambda *command: calls.append([str(word) for word in command]))
    path = tmp_path / 'torchvision-9.1.0+without.ops-cp311-cp311-linux_x86_64.whl'
    path.write_bytes(b'')
    fit_torchvision.exchange(tmp_path)
    assert calls == [['pip', 'install', '--no-deps', '--force-reinstall', str(path)]]


def test_libraries_that_import_torchvision_need_not_wait_for_mmcae():
    """In the environment that `make` builds; in another one, mmcae has to come first where the pair does not fit."""
    code = 'import timm, mmseg.apis, sys; assert "mmcae" not in sys.modules'
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    if 'operator torchvision::nms does not exist' in done.stderr:
        pytest.skip('torchvision does not fit torch in this environment: python tools/fit_torchvision.py')
    assert done.returncode == 0, done.stderr
