"""Every fix of mmcae.compat, and above all that no checkpoint can run code."""

import builtins
import functools
import http.server
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner import checkpoint as mmengine_checkpoint

from mmcae import compat
from mmcae.utils.errors import CheckpointError, DependencyError


class Reduced:
    """An object whose pickle calls a function with arguments when it is loaded."""

    def __init__(self, function, *arguments):
        self.recipe = function, arguments

    def __reduce__(self):
        return self.recipe


class ByName:
    """Pickled as a bare name, such as one that Python itself would not write."""

    def __init__(self, module, name):
        self.module, self.name = module, name

    def __reduce__(self):
        return _resolve, (self.module, self.name)


def _resolve(module, name):
    raise AssertionError('a checkpoint called a function of ours')


def process(code, **environment):
    """Run a few lines in a fresh Python; returns the exit code and all output."""
    environment = {name: value for name, value in dict(os.environ, **environment).items() if value is not None}
    done = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def mark(tmp_path):
    """A file that exists only if a checkpoint ran code, and attacks that would make it."""
    path = tmp_path / 'code-was-run'
    python = f'open({str(path)!r}, "w").close()'
    attacks = {
        'os.system': Reduced(os.system, f'touch {path}'),
        'builtins.exec': Reduced(builtins.exec, python),
        'builtins.eval': Reduced(builtins.eval, python),
        'functools.partial': Reduced(functools.partial, builtins.exec, python),
        'getattr of a class': Reduced(getattr, HistoryBuffer, '__init__'),
        'getattr of another class': Reduced(getattr, np.ndarray, 'tofile'),
        'getattr, then called': Reduced(getattr, torch.Tensor, '__reduce__'),
        'array of objects': np.array([Reduced(builtins.exec, python)], dtype=object),
        'pointers from bytes': Reduced(np.ndarray, (1,), 'O', b'\1' * 8),
        'type of objects': Reduced(np.dtype, 'O'),
        'type with object fields': np.dtype([('x', 'O')]),
        'a function of ours': ByName('os', 'system'),
    }
    return path, attacks


ATTACKS = (
    'os.system',
    'builtins.exec',
    'builtins.eval',
    'functools.partial',
    'getattr of a class',
    'getattr of another class',
    'getattr, then called',
    'array of objects',
    'pointers from bytes',
    'type of objects',
    'type with object fields',
    'a function of ours',
)


@pytest.mark.parametrize('attack', ATTACKS)
def test_checkpoint_with_code_is_refused(mark, tmp_path, attack):
    path, attacks = mark
    file = tmp_path / 'bad.pth'
    torch.save({'state_dict': {'weight': torch.zeros(1)}, 'meta': attacks[attack]}, file)
    with pytest.raises(Exception, match='Weights only load failed|may not|[Uu]nsupported'):
        torch.load(file)
    with pytest.raises(CheckpointError, match='bad.pth'):
        mmengine_checkpoint._load_checkpoint(str(file), map_location='cpu')
    assert not path.exists()


def test_the_attacks_are_real(mark):
    """Under full unpickling they do run: what is refused above is not harmless."""
    path, attacks = mark
    import pickle

    for name in ('os.system', 'builtins.exec', 'builtins.eval'):
        pickle.loads(pickle.dumps(attacks[name]))
        assert path.exists()
        path.unlink()


def test_own_checkpoints_load(tmp_path):
    """What mmengine writes beside the weights: histories, numpy numbers, arrays of any plain type and byte order."""
    hub = MessageHub.get_instance('test_compat')
    hub.update_scalar('loss', 1.5)
    hub.update_scalar('loss', np.float64(2.5))
    hub.update_info('best', np.float32(3))
    arrays = {code: np.arange(6).astype(code).reshape(2, 3) for code in '?bBhHiIlLqQefd'}
    torch.save({'message_hub': hub.state_dict(), 'arrays': arrays, 'swapped': np.arange(3, dtype='>f4')}, tmp_path / 'own.pth')
    loaded = mmengine_checkpoint._load_checkpoint(str(tmp_path / 'own.pth'), map_location='cpu')
    loss = loaded['message_hub']['log_scalars']['loss']
    assert isinstance(loss, HistoryBuffer) and loss.mean() == 2 and loss.statistics('max') == 2.5
    assert loaded['message_hub']['runtime_info']['best'] == 3
    for code, array in arrays.items():
        assert type(loaded['arrays'][code]) is np.ndarray and loaded['arrays'][code].dtype == array.dtype
        np.testing.assert_array_equal(loaded['arrays'][code], array)
    np.testing.assert_array_equal(loaded['swapped'], [0, 1, 2])
    assert np.dtype('f4').isnative


def test_config_text_in_a_checkpoint_is_not_executed(tmp_path):
    """mmengine executes meta['config'] on resuming; it never gets to see it."""
    torch.save({'state_dict': {}, 'meta': {'config': 'import os', 'cfg': 'x = 1', 'epoch': 1}}, tmp_path / 'old.pth')
    loaded = mmengine_checkpoint._load_checkpoint(str(tmp_path / 'old.pth'))
    assert loaded['meta'] == {'cfg': 'x = 1', 'epoch': 1}


def test_downloaded_checkpoint_with_code_is_refused(mark, tmp_path, monkeypatch):
    path, attacks = mark
    served = tmp_path / 'served'
    served.mkdir()
    torch.save({'state_dict': {'weight': torch.ones(1)}}, served / 'good.pth')
    torch.save(attacks['os.system'], served / 'bad.pth')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'hub'))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=served)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{server.server_port}'
        assert mmengine_checkpoint._load_checkpoint(f'{url}/good.pth')['state_dict']['weight'] == 1
        with pytest.raises(Exception, match='Weights only load failed'):
            mmengine_checkpoint._load_checkpoint(f'{url}/bad.pth')
        server.shutdown()
    assert not path.exists()


def test_onedl_second_attempt_without_protection_is_gone(mark, tmp_path, monkeypatch):
    """OneDL's mmengine has a function that, when the safe way fails, loads the same file without protection."""
    path, attacks = mark
    torch.save(attacks['os.system'], tmp_path / 'bad.pth')

    def falls_back(file, map_location=None, weights_only=None):
        try:
            return torch.load(file, map_location=map_location, weights_only=True)
        except Exception:
            return torch.load(file, map_location=map_location, weights_only=False)

    monkeypatch.setattr(mmengine_checkpoint, '_safe_torch_load', falls_back, raising=False)
    compat.read_checkpoints_safely()
    for weights_only in (None, False):
        with pytest.raises(Exception, match='Weights only load failed'):
            mmengine_checkpoint._safe_torch_load(tmp_path / 'bad.pth', weights_only=weights_only)
    assert not path.exists()


def test_variable_that_switches_protection_off_is_refused():
    code, output = process('import mmcae', TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD='1')
    assert code != 0 and 'unset TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD' in output


# ---------------------------------------------------------------- libraries


def test_import_is_light_and_repairs_torchvision(tmp_path):
    """torchvision's CUDA build next to torch's CPU build, which this package imitates, and nothing else of the stack imported."""
    fake = tmp_path / 'torchvision'
    fake.mkdir()
    (fake / '__init__.py').write_text(
        "import torch\n__version__ = '0.99'\n@torch.library.register_fake('torchvision::nms')\ndef nms(dets, scores, iou_threshold): ...\n"
    )
    code, output = process(
        'import sys\nimport mmcae, torchvision\n'
        'assert torchvision.__version__ == "0.99", torchvision\n'
        'loaded = {"mmdet", "mmseg", "mmpretrain", "timm"} & set(sys.modules)\nassert not loaded, loaded\n',
        PYTHONPATH=str(tmp_path),
    )
    assert code == 0, output


def test_other_errors_of_torchvision_are_not_hidden(tmp_path):
    (tmp_path / 'torchvision.py').write_text("raise RuntimeError('something else')\n")
    code, output = process('import mmcae', PYTHONPATH=str(tmp_path))
    assert code != 0 and 'something else' in output


def test_mmpretrain_loads_without_mmdet_which_stays_available():
    code, output = process(
        'import sys\nfrom mmcae import compat\ncompat.import_mmpretrain()\n'
        'assert "mmpretrain.models" in sys.modules and "mmdet" not in sys.modules\n'
        'import mmdet.models\nassert mmdet.models.MaskRCNN'
    )
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


@pytest.mark.parametrize('library', ['mmengine', 'mmcv', 'mmdet', 'mmpretrain'])
def test_missing_library_is_named_with_the_remedy(monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(DependencyError, match=f'{library} is not installed. Remedy: pip install "{library}>='):
        compat.require(library)


def test_library_that_lacks_one_underneath(monkeypatch):
    """mmseg imports ftfy without declaring it."""

    def without_ftfy(name):
        raise ModuleNotFoundError("No module named 'ftfy'", name='ftfy')

    monkeypatch.setattr(compat.importlib, 'import_module', without_ftfy)
    with pytest.raises(DependencyError, match='mmseg cannot be imported .*Remedy: pip install "ftfy"'):
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
    monkeypatch.setattr(sys.modules[library], '__version__', version)
    if works:
        assert compat.require(library).__version__ == version
    else:
        with pytest.raises(DependencyError, match=f'{library} {version} does not work'):
            compat.require(library)


def test_mmcv_without_operators(monkeypatch):
    pytest.importorskip('mmdet')
    find_spec = compat.importlib.util.find_spec
    monkeypatch.setattr(compat.importlib.util, 'find_spec', lambda name: None if name == 'mmcv._ext' else find_spec(name))
    with pytest.raises(DependencyError, match='compiled operators of mmcv'):
        compat.require('mmdet')


@pytest.mark.parametrize(
    ('failure', 'remedy'),
    [
        ('libGL.so.1: cannot open shared object file: No such file or directory', 'apt-get install libgl1;'),
        ('libxcb.so.1: cannot open shared object file: No such file or directory', 'apt-get install libxcb1;'),
        ('DLL load failed', 'pip install opencv-python-headless'),
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
