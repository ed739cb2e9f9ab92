"""Importing mmcae changes nothing, what is wrong with an environment is named, and the quirks of versions are worked around."""

import importlib
import os
import subprocess
import sys

import pytest

from mmcae import compat
from mmcae.utils.errors import DependencyError


def process(code, **environment):
    """Run a few lines in a fresh Python; returns the exit code and all output."""
    environment = {name: value for name, value in dict(os.environ, **environment).items() if value is not None}
    done = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout + done.stderr


# ---------------------------------------------------------------- libraries


IMPORT = """
import sys, torch, mmengine, mmengine.runner.checkpoint as checkpoint
from mmengine.config.config import RemoveAssignFromAST
before = set(sys.modules)
watched = lambda: (
    torch.load, str(torch.serialization.get_safe_globals()), torch.hub.load_state_dict_from_url, torch.cuda.set_device,
    dict(checkpoint.CheckpointLoader._schemes), checkpoint.CheckpointLoader.load_checkpoint.__func__, checkpoint.load_from_local,
    checkpoint._load_checkpoint, mmengine.runner.Runner.load_checkpoint, mmengine.config.config.RemoveAssignFromAST, RemoveAssignFromAST,
)
known = watched()
import mmcae
assert watched() == known
loaded = {name.split(".")[0] for name in set(sys.modules) - before}
assert loaded <= {"mmcae"}, loaded
"""


def test_importing_changes_nothing():
    """No function of mmengine or torch is another one afterwards, no list of theirs is longer, and nothing else is imported."""
    code, output = process(IMPORT)
    assert code == 0, output


@pytest.mark.parametrize(
    ('failure', 'error', 'message'),
    [
        (RuntimeError('operator torchvision::nms does not exist'), DependencyError, 'another build than torch .*tools/fit_torchvision.py'),
        (RuntimeError('something else'), RuntimeError, 'something else'),
    ],
)
def test_torchvision_of_another_build(monkeypatch, failure, error, message):
    def fail(name):
        raise failure

    monkeypatch.setattr(compat.importlib, 'import_module', fail)
    with pytest.raises(error, match=message):
        compat.require('torchvision')


def test_mmpretrain_loads_without_mmdet_which_stays_available():
    code, output = process(
        'import sys\nfrom mmcae import compat\ncompat.import_mmpretrain()\n'
        'assert "mmpretrain.models" in sys.modules and "mmdet" not in sys.modules\n'
        'import mmdet.models\nassert mmdet.models.MaskRCNN'
    )
    assert code == 0, output


@pytest.mark.parametrize('version', ['4.57.6', '5.1.0'])
def test_beside_a_transformers_that_mmpretrain_does_not_know(tmp_path, version):
    """It lacks functions that mmpretrain's multimodal models take from it, and alone mmpretrain's models cannot be imported."""
    (tmp_path / 'transformers').mkdir()
    for name, content in {
        'transformers/__init__.py': '',
        'transformers/activations.py': 'ACT2FN = {}',
        'transformers/modeling_utils.py': 'class PreTrainedModel: pass',
        f'transformers-{version}.dist-info/METADATA': f'Metadata-Version: 2.1\nName: transformers\nVersion: {version}\n',
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get('PYTHONPATH')])])
    code, output = process('import mmpretrain.models', PYTHONPATH=path)
    assert code != 0 and 'transformers' in output or 'NoneType' in output, output
    for first in ('import mmcae.models', 'from mmcae import compat; compat.import_mmpretrain()'):
        code, output = process(f'{first}; from mmpretrain.models import VisionTransformer; import mmcae.models', PYTHONPATH=path)
        assert code == 0, output


def test_our_types_are_found_without_importing_mmcae():
    """As in the tools of the other libraries, which know nothing of mmcae."""
    code, output = process(
        'from mmengine.registry import DefaultScope, MODELS, OPTIM_WRAPPERS\n'
        'with DefaultScope.overwrite_default_scope("mmengine"):\n'
        '    for registry, name in ((MODELS, "CAEViT"), (OPTIM_WRAPPERS, "AmpOptimWrapper")):\n'
        '        assert registry.get(f"mmcae.{name}").__name__ == name\n'
    )
    assert code == 0, output


@pytest.mark.parametrize(
    ('library', 'package'),
    [('mmengine', 'mmengine>='), ('mmcv', 'mmcv-lite>=2.1,<2.2"$'), ('mmdet', r'mmcae\[detection\]"'), ('timm', 'timm>=')],
)
def test_missing_library_is_named_with_the_remedy(monkeypatch, library, package):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(DependencyError, match=f'{library} is not installed. Remedy: pip install "{package}'):
        compat.require(library)


def test_library_that_lacks_one_underneath(monkeypatch):
    """mmseg imports ftfy without declaring it."""

    def without_ftfy(name):
        raise ModuleNotFoundError("No module named 'ftfy'", name='ftfy')

    monkeypatch.setattr(compat.importlib, 'import_module', without_ftfy)
    with pytest.raises(DependencyError, match=r'mmseg cannot be imported .*Remedy: pip install "mmcae\[segmentation\]"'):
        compat.require('mmseg')


@pytest.mark.parametrize(
    ('library', 'version', 'works'),
    [
        ('mmcv', '2.0.1', False),
        ('mmcv', '2.1.0', True),
        ('mmcv', '2.2.0', False),
        ('mmcv', '2.3.6', True),
        ('mmengine', '0.10.3', False),
        ('mmengine', '0.10.12', True),
        ('mmengine', '1.0.0', False),
    ],
)
def test_versions(monkeypatch, library, version, works):
    monkeypatch.setattr(importlib.import_module(library), '__version__', version)
    if works:
        assert compat.require(library).__version__ == version
    else:
        with pytest.raises(DependencyError, match=f'{library} {version} does not work'):
            compat.require(library)


@pytest.mark.parametrize(
    ('failure', 'reason'),
    [
        (ModuleNotFoundError("No module named 'mmcv._ext'", name='mmcv._ext'), 'are not installed'),
        (ImportError('undefined symbol: _ZN3c10'), r'do not fit torch \(undefined symbol'),
    ],
)
@pytest.mark.parametrize('library', ['mmdet', 'mmseg'])
def test_mmcv_without_operators(monkeypatch, library, failure, reason):
    """mmcv-lite, or an mmcv that was compiled against another torch."""
    import_module = compat.importlib.import_module

    def without_operators(name):
        if name == 'mmcv._ext':
            raise failure
        return import_module(name)

    pytest.importorskip(library)
    monkeypatch.setattr(compat.importlib, 'import_module', without_operators)
    with pytest.raises(DependencyError, match=f'{library} needs the compiled operators of mmcv, which {reason}.*: python .*build_mmcv.py'):
        compat.require(library)


def test_mmengine_needs_what_python_3_14_has_removed(monkeypatch):
    compat.require('mmengine')
    monkeypatch.delattr('pkgutil.find_loader', raising=False)
    with pytest.raises(DependencyError, match='does not work on Python 3.14.*Python 3.10 to 3.13'):
        compat.require('mmengine')


def test_command_for_an_extra_adds_the_operators_that_are_missing(monkeypatch):
    assert compat.how_to_install('mmdet.apis') == 'pip install "mmcae[detection]"'
    monkeypatch.setattr(compat, 'has_operators', lambda: False)
    assert compat.how_to_install('mmdet') == f'pip install "mmcae[detection]" && python {compat.TOOLS / "build_mmcv.py"}'
    assert compat.how_to_install('tifffile') == 'pip install "mmcae[slides]"'


def packages(monkeypatch, tmp_path, **files):
    """Installed packages, a name with `_` for `-`, and which of their files exist."""

    class File(type(tmp_path)):
        def locate(self):
            return self

    found = {}
    for name, (there, missing) in files.items():
        for file in there:
            (tmp_path / file).touch()
        found[name.replace('_', '-')] = [File(tmp_path / file) for file in (*there, *missing)]
    monkeypatch.setattr(compat, 'installed', lambda package: '1.0' if package in found else None)
    monkeypatch.setattr(compat.metadata, 'files', found.get)


def test_packages_that_share_files(monkeypatch, tmp_path):
    packages(monkeypatch, tmp_path, mmcv=(('a.py',), ()), mmcv_lite=(('b.py',), ()))
    assert not compat.damage('mmcv')
    packages(monkeypatch, tmp_path, mmcv=(('a.py',), ('_ext.so',)))
    assert compat.damage('mmcv').startswith('python') and 'files of mmcv are missing' in compat.damage('mmcv')
    packages(monkeypatch, tmp_path, opencv_python_headless=((), ('cv2.so',)))
    assert compat.damage('cv2').startswith('pip install --force-reinstall --no-deps opencv-python-headless==1.0 (')
    packages(monkeypatch, tmp_path, mmengine=(('a.py',), ()), onedl_mmengine=(('b.py',), ()))
    assert compat.damage('mmengine').startswith('pip uninstall -y mmengine && pip install --force-reinstall --no-deps onedl-mmengine (')
    packages(monkeypatch, tmp_path, mmcv_lite=(('a.py',), ()), onedl_mmcv=(('b.py',), ()))
    assert compat.damage('mmcv').startswith('pip uninstall -y mmcv-lite && pip install --force-reinstall --no-deps onedl-mmcv (')


def test_damage_underneath_is_the_remedy(monkeypatch, tmp_path):
    """mmpretrain finds no part of an mmcv whose files another package has taken."""

    def without_image(name):
        raise ModuleNotFoundError("No module named 'mmcv.image'", name='mmcv.image')

    packages(monkeypatch, tmp_path, onedl_mmcv=((), ('image.py',)), onedl_mmpretrain=(('b.py',), ()))
    monkeypatch.setattr(compat.importlib, 'import_module', without_image)
    with pytest.raises(DependencyError, match='mmpretrain cannot be imported .*: pip install --force-reinstall --no-deps onedl-mmcv=='):
        compat.require('mmpretrain')


@pytest.mark.parametrize(
    ('failure', 'remedy'),
    [
        ('libGL.so.1: cannot open shared object file: No such file or directory', 'apt-get install libgl1$'),
        ('libxcb.so.1: cannot open shared object file: No such file or directory', 'apt-get install libxcb1$'),
        ('DLL load failed', 'no-deps opencv-python-headless$'),
    ],
)
def test_opencv_without_system_library(monkeypatch, failure, remedy):
    class Broken:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == 'cv2':
                raise ImportError(failure)

    monkeypatch.delitem(sys.modules, 'cv2')
    monkeypatch.setattr(sys, 'meta_path', [Broken, *sys.meta_path])
    with pytest.raises(DependencyError, match=remedy):
        compat.require_opencv()
