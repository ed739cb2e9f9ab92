"""OpenAI's pickled modules become state dicts without any code of the file running, and files that would run code are refused."""

import collections
import os
import sys
import zipfile

import pytest
import torch
from torch import nn

from mmcae.checkpoints.modules import read_module
from mmcae.utils.errors import CheckpointError

PACKAGE = '''
"""Modules as people write them: attributes of their own, parameters, buffers, children and a shared module."""
import torch
from torch import nn

class Conv2d(nn.Module):
    def __init__(self, n_in, n_out, kw):
        super().__init__()
        self.kw, self.device, self.names = kw, torch.device('cpu'), {'w', 'b'}
        self.w, self.b = nn.Parameter(torch.randn(n_out, n_in, kw, kw)), nn.Parameter(torch.randn(n_out))

class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        relu = nn.ReLU()
        self.vocab_size, self.use_float16, self.gain, self.nothing = 8192, True, 0.25, None
        self.blocks = nn.Sequential()
        self.blocks.add_module('input', Conv2d(3, 8, 7))
        self.blocks.add_module('relu', relu)
        self.blocks.add_module('group', nn.Sequential(relu, Conv2d(8, 4, 1), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1, bias=False)))
        self.register_buffer('table', torch.arange(5))
        self.register_buffer('absent', None)
'''


@pytest.fixture
def dall_e(tmp_path, monkeypatch):
    """A package `dall_e`, importable until it is hidden by calling what this returns."""
    folder = tmp_path / 'packages' / 'dall_e'
    folder.mkdir(parents=True)
    (folder / '__init__.py').write_text('')
    (folder / 'encoder.py').write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(folder.parent))
    import dall_e.encoder

    yield dall_e.encoder
    for name in [name for name in sys.modules if name.split('.')[0] == 'dall_e']:
        del sys.modules[name]


def hide_package(monkeypatch):
    monkeypatch.setattr(sys, 'path', [path for path in sys.path if not path.endswith('packages')])
    for name in [name for name in sys.modules if name.split('.')[0] == 'dall_e']:
        del sys.modules[name]


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_state_dict_without_the_package(dall_e, tmp_path, monkeypatch, dtype):
    module = dall_e.Encoder().to(dtype)
    expected = module.state_dict()
    torch.save(module, tmp_path / 'encoder.pkl')
    hide_package(monkeypatch)

    state = read_module(tmp_path / 'encoder.pkl')

    assert list(state) != [] and set(state) == set(expected)
    assert all(torch.equal(state[key], expected[key]) and state[key].dtype == expected[key].dtype for key in expected)
    assert not any(value.requires_grad for value in state.values())
    assert 'dall_e' not in sys.modules


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def module_with(secret):
    """A module that carries something in an attribute."""
    module = nn.Sequential(nn.Linear(2, 2))
    module.secret = secret
    return module


@pytest.mark.parametrize(
    ('function', 'arguments', 'name'),
    [
        (os.system, ('touch {marker}',), 'system'),
        (eval, ('open({marker!r}, "w")',), 'eval'),
        (getattr, ('text', 'upper'), 'builtins.getattr'),
        (torch.load, ('{marker}',), 'torch.serialization.load'),
        (torch.hub.load, ('{marker}', 'model'), 'torch.hub.load'),
        (nn.utils.clip_grad_norm_, ((), 1.0), 'torch.nn.utils'),
    ],
)
def test_code_is_refused_by_name(tmp_path, function, arguments, name):
    marker = tmp_path / 'ran'
    arguments = [part.format(marker=str(marker)) if isinstance(part, str) else part for part in arguments]
    torch.save(module_with(Call(function, *arguments)), tmp_path / 'encoder.pkl')
    with pytest.raises(CheckpointError, match=name):
        read_module(tmp_path / 'encoder.pkl')
    assert not marker.exists()


def write_checkpoint(path, program):
    """A torch zip file around a pickle program of one's own."""
    torch.save({}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, 'w') as archive:
        for name, data in entries.items():
            archive.writestr(name, program if name.endswith('data.pkl') else data)


@pytest.mark.parametrize(
    'program',
    [
        # A "module" called as a function, with arguments, as a class of torch.nn.modules would be.
        b'\x80\x02ctorch.nn.modules.module\nModule\nX\x04\x00\x00\x00ls -\x85R.',
        # Attributes that are no mapping; a module without attributes; another object in the place of children.
        b'\x80\x02cdall_e.encoder\nEncoder\n)\x81K\x01b.',
        b'\x80\x02cdall_e.encoder\nEncoder\n)\x81.',
        b'\x80\x02cdall_e.encoder\nEncoder\n)\x81}X\x08\x00\x00\x00_modulesK\x05sb.',
        # Opcodes that reach any class without naming it as a global.
        b'\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02ls\x85R.',
        b'\x80\x02(ios\nsystem\n.',
        b'\x80\x02K\x07.',
    ],
)
def test_hand_written_programs_are_refused(tmp_path, program):
    write_checkpoint(tmp_path / 'encoder.pkl', program)
    with pytest.raises(CheckpointError, match='encoder.pkl'):
        read_module(tmp_path / 'encoder.pkl')


def test_endless_module_is_refused(tmp_path):
    module = nn.Sequential(nn.Linear(1, 1))
    module._modules['0'] = module
    torch.save(module, tmp_path / 'encoder.pkl')
    with pytest.raises(CheckpointError, match='encoder.pkl'):
        read_module(tmp_path / 'encoder.pkl')


@pytest.mark.parametrize('content', [collections.OrderedDict(w=torch.ones(1)), [1], nn.ReLU()])
def test_no_module_with_tensors(tmp_path, content):
    torch.save(content, tmp_path / 'encoder.pkl')
    with pytest.raises(CheckpointError, match='encoder.pkl'):
        read_module(tmp_path / 'encoder.pkl')


def test_damaged_and_missing_files(tmp_path):
    path = tmp_path / 'encoder.pkl'
    with pytest.raises(CheckpointError, match=f'no checkpoint {path}'):
        read_module(path)
    path.write_text('--2024-01-01 00:00:00--  https://cdn.openai.com/dall-e/encoder.pkl\nResolving ...')
    with pytest.raises(CheckpointError, match='log or a web page'):
        read_module(path)
    torch.save(nn.Linear(20, 20), path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(CheckpointError, match='damaged'):
        read_module(path)


def test_files_of_old_versions_of_torch(tmp_path):
    module = nn.Linear(2, 2)
    torch.save(module, tmp_path / 'x.pkl', _use_new_zipfile_serialization=False)
    assert torch.equal(read_module(tmp_path / 'x.pkl')['weight'], module.weight)


def test_torchscript(tmp_path):
    """An archive of torch.jit.save, scripted and traced, in half precision as OpenAI's CLIP."""
    module = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.Sequential(nn.Flatten(), nn.Linear(4, 2))).half().eval()
    module.register_buffer('scale', torch.tensor(2.0))
    for name, made in (('a.pt', torch.jit.script(module)), ('b.pt', torch.jit.trace(module, torch.ones(1, 3, 2, 2).half()))):
        torch.jit.save(made, tmp_path / name)
        state, expected = read_module(tmp_path / name), module.state_dict()
        assert set(state) == set(expected)
        assert all(torch.equal(state[key], expected[key]) and state[key].dtype == expected[key].dtype for key in expected)
