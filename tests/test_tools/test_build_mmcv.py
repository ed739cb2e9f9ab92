"""tools/build_mmcv.py with a stand-in for pip, which downloads and compiles nothing."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

SETUP = """from setuptools import setup


def get_version():
    version_file = 'mmcv/version.py'
    with open(version_file, encoding='utf-8') as f:
        exec(compile(f.read(), version_file, 'exec'))
    return locals()['__version__']


flags = ['-Wall', '-std=c++17']
print(get_version())
"""


@pytest.fixture
def build_mmcv(repository, tmp_path, monkeypatch):
    monkeypatch.setenv('MMCAE_CACHE', str(tmp_path / 'cache'))
    spec = importlib.util.spec_from_file_location('build_mmcv', repository / 'tools' / 'build_mmcv.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pip(build_mmcv, monkeypatch):
    """What pip is asked for; `pip.fail` is a verb at which it fails."""

    class Pip:
        fail, setup = None, SETUP

        def __init__(self):
            self.calls = []

        def __call__(self, *arguments, environment=None, check=True):
            self.calls.append([*map(str, arguments)])
            if arguments[0] == 'download':  # it leaves the unpacked package in TMPDIR, whether it goes on or not
                name = arguments[-1].split('==')[0]
                package = Path(environment['TMPDIR'], 'pip-download-x', f'{name}_y')
                (package / 'mmcv').mkdir(parents=True)
                (package / 'mmcv' / 'version.py').write_text("__version__ = '2.1.0'")
                if self.fail != 'download':
                    (package / 'setup.py').write_text(self.setup)
            if arguments[0] == self.fail and check:
                sys.exit(1)
            if arguments[0] == 'wheel':
                assert environment['MMCV_WITH_OPS'] == '1' and environment['MAX_JOBS']
                name, version = arguments[-1].name.rsplit('-', 1)
                Path(arguments[arguments.index('-w') + 1], f'{name.replace("-", "_")}-{version}-cp311-test.whl').touch()

        def verbs(self):
            verbs = [call[0] for call in self.calls]
            self.calls.clear()
            return verbs

    stand_in = Pip()
    monkeypatch.setattr(build_mmcv, 'pip', stand_in)
    monkeypatch.setattr(sys, 'argv', ['build_mmcv.py'])
    return stand_in


def test_compiles_once(build_mmcv, pip):
    build_mmcv.main()
    shelf = build_mmcv.wheel_shelf()
    assert pip.calls[-1] == ['install', '--no-deps', '--force-reinstall', str(next(shelf.glob('mmcv-*.whl')))]
    assert '--no-build-isolation' in pip.calls[2]
    assert pip.verbs() == ['install', 'download', 'wheel', 'install'] and not (shelf / 'source').exists()
    build_mmcv.main()
    assert pip.verbs() == ['install']


def test_wheel_of_another_mmcv_is_not_used(build_mmcv, pip, monkeypatch):
    build_mmcv.main()
    monkeypatch.setattr(build_mmcv, 'VERSION', '2.1.9')
    pip.verbs()
    build_mmcv.main()
    assert 'mmcv-2.1.9-' in pip.calls[-1][-1]


def test_the_fork_where_it_is_installed(build_mmcv, pip, tmp_path, monkeypatch):
    """Its version is not read from its setup.py; the standard of C++ is torch's, too."""
    folder = tmp_path / 'site/onedl_mmcv-2.3.6.dist-info'
    folder.mkdir(parents=True)
    (folder / 'METADATA').write_text('Metadata-Version: 2.1\nName: onedl-mmcv\nVersion: 2.3.6\n')
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setattr('torch.__version__', '2.14.1')
    pip.setup = "flags = ['-std=c++17']"
    texts = []
    repair = build_mmcv.repair
    monkeypatch.setattr(build_mmcv, 'repair', lambda setup, **options: (repair(setup, **options), texts.append(setup.read_text())))
    build_mmcv.main()
    assert pip.calls[1][-1] == 'onedl-mmcv==2.3.6' and texts == ["flags = ['-std=c++20']"]
    assert Path(pip.calls[-1][-1]).name == 'onedl_mmcv-2.3.6-cp311-test.whl'
    assert pip.verbs() == ['install', 'download', 'wheel', 'install']
    build_mmcv.main()
    assert pip.verbs() == ['install']


def test_interrupted_compilation_goes_on(build_mmcv, pip):
    pip.fail = 'wheel'
    with pytest.raises(SystemExit):
        build_mmcv.main()
    pip.verbs()
    pip.fail = None
    build_mmcv.main()
    assert pip.verbs() == ['install', 'wheel', 'install']  # no second download


def test_the_repaired_setup_finds_its_version(build_mmcv, pip, tmp_path):
    """In a function whose `locals()` is a snapshot, as on Python 3.13."""
    source = tmp_path / 'mmcv'
    build_mmcv.fetch(tmp_path / 'scratch', source, 'mmcv', '2.1.0')
    for code, works in ((SETUP, sys.version_info < (3, 13)), ((source / 'setup.py').read_text(), True)):
        done = subprocess.run([sys.executable, '-c', code], cwd=source, capture_output=True, text=True)
        assert (done.stdout == '2.1.0\n') == works, done.stderr


@pytest.mark.parametrize(('torch_version', 'standard'), [('2.13.0+cpu', 'c++17'), ('2.14.1+cu130', 'c++20'), ('3.0.0', 'c++20')])
def test_standard_of_cpp_is_that_of_torch(build_mmcv, pip, tmp_path, monkeypatch, torch_version, standard):
    monkeypatch.setattr('torch.__version__', torch_version)
    build_mmcv.fetch(tmp_path / 'scratch', tmp_path / 'mmcv', 'mmcv', '2.1.0')
    assert f"flags = ['-Wall', '-std={standard}']" in (tmp_path / 'mmcv/setup.py').read_text()


def test_what_cannot_be_had_is_named(build_mmcv, pip):
    pip.setup = 'another'
    with pytest.raises(SystemExit, match='mmcv has changed'):
        build_mmcv.main()
    pip.fail = 'download'
    with pytest.raises(SystemExit, match='could not download the source package of mmcv 2.1.0'):
        build_mmcv.main()


def test_gpu_without_compiler_is_told_why(build_mmcv, monkeypatch):
    import torch
    from torch.utils import cpp_extension

    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.version, 'cuda', '13.0')
    monkeypatch.setattr(cpp_extension, 'CUDA_HOME', None)
    with pytest.raises(SystemExit, match='CUDA 13.0 toolkit'):
        build_mmcv.check_cuda_compiler()


def test_version_is_the_tested_one(build_mmcv, repository):
    constraints = (repository / 'requirements' / 'constraints.txt').read_text()
    assert build_mmcv.VERSION == re.search(r'^mmcv==(\S+)', constraints, re.MULTILINE)[1]
    assert f'mmcv-lite=={build_mmcv.VERSION}\n' in constraints
