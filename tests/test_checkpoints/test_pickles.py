"""The interpreter of pickles: whatever torch.save writes is read as torch reads it, and nothing else does anything."""

import argparse
import builtins
import collections
import functools
import os
import pathlib
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from torch import nn

from mmcae.checkpoints import read_checkpoint
from mmcae.checkpoints.pickle_names import Record
from mmcae.utils.errors import CheckpointError

FORMATS = [dict(), dict(_use_new_zipfile_serialization=False), dict(pickle_protocol=4), dict(pickle_protocol=5)]
DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
    torch.complex64, torch.complex128,
]  # fmt: skip


def round_trip(content, folder, mmap=False, **how):
    torch.save(content, folder / 'x.pth', **how)
    return read_checkpoint(folder / 'x.pth', mmap=mmap)


def same(found, wanted):
    """Whether two values are equal in content and kind."""
    if isinstance(wanted, torch.Tensor):
        equal = found.dtype == wanted.dtype and found.stride() == wanted.stride() and torch.equal(found, wanted)
        return equal and found.device.type == 'cpu' and not found.requires_grad
    if isinstance(wanted, np.ndarray | np.generic):
        return found.dtype == wanted.dtype and np.array_equal(found, wanted)
    if isinstance(wanted, dict):
        return isinstance(found, dict) and list(found) == list(wanted) and all(same(found[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list | tuple):
        return type(found) is type(wanted) and len(found) == len(wanted) and all(map(same, found, wanted))
    return type(found) is type(wanted) and found == wanted


# ---------------------------------------------------------------- right input


@pytest.mark.parametrize('how', FORMATS)
@pytest.mark.parametrize('mmap', [False, True])
def test_tensors(tmp_path, how, mmap):
    """Of every type, sliced, transposed, shared, empty, without dimensions, parameters."""
    content = {str(dtype): torch.arange(6).to(dtype).reshape(2, 3) for dtype in DTYPES}
    base = torch.randn(4, 5)
    content |= dict(slice=base[1:3, ::2], turned=base.T, view=base.view(-1), empty=torch.empty(0, 3), one=torch.tensor(1.5))
    found = round_trip(content, tmp_path, mmap, **how)
    assert same(found, content)
    assert found['turned'].untyped_storage().data_ptr() == found['view'].untyped_storage().data_ptr()
    assert same(round_trip(dict(p=nn.Parameter(base)), tmp_path, mmap, **how), dict(p=base))


@pytest.mark.parametrize('how', FORMATS)
def test_plain_data(tmp_path, how):
    content = dict(
        numbers=[0, -1, 255, 2**40, -(2**70), 1.5, float('inf'), True, None],
        texts=['', 'ä', 'x' * 300, b'', b'abc', b'\xff' * 300],
        containers=[(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], {}, {1: 2, 'a': [3]}, set(), {1}, frozenset({2})],
        ordered=collections.OrderedDict(b=1, a=2),
        counter=collections.Counter('abca'),
        sizes=torch.Size([2, 3]),
        dtype=torch.float16,
    )
    assert same(round_trip(content, tmp_path, **how), content)
    assert round_trip(collections.defaultdict(list, {'a': [1]}), tmp_path, **how) == {'a': [1]}
    loop = []
    loop.append(loop)
    found = round_trip(loop, tmp_path, **how)
    assert found[0] is found


@pytest.mark.parametrize('how', FORMATS)
def test_arrays_and_numbers_of_numpy(tmp_path, how):
    content = {code: np.arange(6).astype(code).reshape(2, 3) for code in '?bBhHiIlLqQefdFD'}
    content |= dict(swapped=np.arange(3, dtype='>f4'), fortran=np.asfortranarray(np.arange(6.0).reshape(2, 3)), empty=np.zeros((0, 2)))
    content |= dict(number=np.float64(1.5), truth=np.bool_(True), whole=np.int32(-3), none=np.array(2.0))
    assert same(round_trip(content, tmp_path, **how), content)


@pytest.mark.parametrize('how', FORMATS)
def test_what_a_training_leaves(tmp_path, how):
    """The state dicts of a model, an optimizer, a scheduler and a scaler, and the states of random numbers."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    scaler = torch.amp.GradScaler('cpu')
    content = dict(
        optimizer=optimizer.state_dict(), scheduler=scheduler.state_dict(), scaler=scaler.state_dict(), rng=torch.get_rng_state()
    )
    assert same(round_trip(content, tmp_path, **how), content)
    found = round_trip(model.state_dict(), tmp_path, **how)
    assert same(dict(found), dict(model.state_dict())) and found._metadata == model.state_dict()._metadata
    other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    other.load_state_dict(found)


@pytest.mark.parametrize('how', FORMATS)
def test_objects_beside_the_weights_are_records(tmp_path, how):
    content = dict(args=argparse.Namespace(model='m', lr=[1.5]), cfg=ConfigDict(a=dict(b=1)), path=pathlib.PurePosixPath('/x'))
    content |= dict(history=HistoryBuffer([1.0, 2.0], [1, 2]))
    found = round_trip(content, tmp_path, **how)
    assert all(type(value) is Record for value in found.values())
    assert found['args'].name == 'argparse.Namespace' and found['args'].attributes == dict(model='m', lr=[1.5])
    assert found['history'].attributes['_log_history'].tolist() == [1.0, 2.0]


def test_checksums_are_compared(tmp_path):
    """A byte that changed on the disk is noticed, which torch.load does not do."""
    path = tmp_path / 'x.pth'
    torch.save(dict(w=torch.arange(5000.0)), path)
    data = bytearray(path.read_bytes())
    data[data.index(struct.pack('<f', 4321.0))] ^= 1
    path.write_bytes(data)
    assert not torch.equal(torch.load(path, weights_only=True)['w'], torch.arange(5000.0))
    with pytest.raises(CheckpointError, match='x.pth is damaged .*Bad CRC'):
        read_checkpoint(path)


# ---------------------------------------------------------------- input that would run code


class Reduced:
    """An object whose pickle calls a function with arguments when it is loaded."""

    def __init__(self, function, *arguments):
        self.recipe = function, arguments

    def __reduce__(self):
        return self.recipe


def attacks(target):
    python = f'open({str(target)!r}, "w").close()'
    return {
        'os.system': Reduced(os.system, f'touch {target}'),
        'exec': Reduced(builtins.exec, python),
        'eval': Reduced(builtins.eval, python),
        'partial': Reduced(functools.partial, builtins.exec, python),
        'getattr of HistoryBuffer': Reduced(getattr, HistoryBuffer, '__init__'),
        'getattr of another class': Reduced(getattr, np.ndarray, 'tofile'),
        'getattr, then called': Reduced(getattr, torch.Tensor, '__reduce__'),
        'array of objects': np.array([Reduced(builtins.exec, python)], dtype=object),
        'pointers from bytes': Reduced(np.ndarray, (1,), 'O', b'\1' * 8),
        'type of objects': np.dtype('O'),
        'type with object fields': np.dtype([('x', 'O')]),
        'type with fields': np.dtype([('x', '<f8')]),
        'type with a subarray': np.dtype(('<f8', (1000,))),
        'texts': np.array(['x']),
        'much memory': Reduced(bytearray, 2**40),
        'a file': Reduced(np.load, str(target)),
        'a module': nn.Linear(1, 1),
        'tensor of a device': Reduced(torch.zeros, 3),
    }


@pytest.mark.parametrize('how', FORMATS)
@pytest.mark.parametrize('attack', list(attacks('')))
def test_nothing_runs(tmp_path, how, attack):
    target = tmp_path / 'ran'
    torch.save(dict(state_dict=dict(w=torch.zeros(1)), meta=attacks(target)[attack]), tmp_path / 'bad.pth', **how)
    before = dict(vars(HistoryBuffer))
    with pytest.raises(CheckpointError, match='bad.pth was refused'):
        read_checkpoint(tmp_path / 'bad.pth')
    assert not target.exists() and dict(vars(HistoryBuffer)) == before


def test_the_attacks_are_real(tmp_path):
    """Under full unpickling they do run: what is refused above is not harmless."""
    target = tmp_path / 'ran'
    for name in ('os.system', 'exec', 'eval'):
        pickle.loads(pickle.dumps(attacks(target)[name]))
        assert target.exists()
        target.unlink()


def write(path, program):
    """A file of torch.save around a pickle written by hand, with a storage of four bytes."""
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('a/data.pkl', b'\x80\x02' + program + b'.')
        archive.writestr('a/data/0', b'\0' * 4)


def number(value):
    return b'J' + struct.pack('<i', value)


def text(value):
    return b'X' + struct.pack('<I', len(value)) + value.encode()


STORAGE = b'(' + text('storage') + b'ctorch\nFloatStorage\n' + text('0') + text('cpu') + number(1) + b'tQ'
ARRAY = b'cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0tC\x01btR'

FLOAT64 = b'cnumpy\ndtype\n(' + text('f8') + b'\x89\x88tR(K\x03' + text('<') + b'NNN' + number(-1) + number(-1) + b'K\0tb'


def tensor(size, stride=None, offset=0, storage=STORAGE):
    stride = size if stride is None else stride
    shapes = b''.join(b'(' + b''.join(map(number, values)) + b't' for values in (size, stride))
    return b'ctorch._utils\n_rebuild_tensor_v2\n(' + storage + number(offset) + shapes + b'\x89}tR'


def test_a_tensor_written_by_hand_is_read(tmp_path):
    write(tmp_path / 'x.pth', tensor([1], [1]))
    assert torch.equal(read_checkpoint(tmp_path / 'x.pth'), torch.zeros(1))


@pytest.mark.parametrize(
    'program',
    [
        tensor([2], [1]),
        tensor([1], [1], 1),
        tensor([2**30], [1]),
        tensor([2**30], [0]),
        tensor([2**20, 2**20], [0, 0]),
        tensor([1], [-1], 0),
        tensor([-1], [1]),
        tensor([1], [1], -1),
        tensor([1, 1], [1]),
        STORAGE.replace(number(1), number(2**30)) + b'0' + tensor([2**30], [1], storage=STORAGE.replace(number(1), number(2**30))),
        tensor([1], [1], storage=STORAGE.replace(text('0'), text('1'))),
        tensor([1], [1], storage=STORAGE.replace(text('0'), text('../a/data/0'))),
        tensor([1], [1], storage=b'cos\nsystem\n'),
        # Arrays: another size than their bytes, a type that never comes, elements that are objects, a huge shape of no bytes.
        ARRAY + b'(K\x01(' + number(2**30) + b't' + FLOAT64 + b'\x89C\x08' + b'\0' * 8 + b'tb',
        ARRAY,
        b'(' + ARRAY + b'l',
        b'cnumpy\ndtype\n(' + text('O8') + b'\x89\x88tR',
        b'cnumpy\ndtype\n(' + text('V8') + b'\x89\x88tR',
        # Attributes for what has none: classes, functions, tensors, containers.
        b'ccollections\nOrderedDict\n}' + text('update') + number(1) + b'sb',
        b'cargparse\nNamespace\n}' + text('__init__') + number(1) + b'sb',
        b'cmmengine.logging.history_buffer\nHistoryBuffer\n}' + text('min') + number(1) + b'sb',
        b'cmmengine.logging.history_buffer\nHistoryBuffer\n)\x81}' + text('min') + number(1) + b'sb',
        b'cmmengine.logging.history_buffer\nHistoryBuffer\n)\x81}' + text('statistics_methods') + b'}' + text('min') + text('max') + b'ssb',
        b'cmmengine.logging.history_buffer\nHistoryBuffer\n)\x81}' + text('statistics_methods') + b'}' + text('x') + b'cbuiltins\nint\nssb',
        tensor([1], [1]) + b'}' + text('data') + number(1) + b'sb',
        b'}}' + text('x') + number(1) + b'sb',
        b'ccollections\nOrderedDict\n)R}' + text('__class__') + number(1) + b'sb',
        # Calls of what is no function, names that are no names, protocols and instructions that nobody writes.
        number(1) + b')R',
        b'cnumpy\nndarray\n)R',
        b'ccollections\nOrderedDict\n' + number(1) + b'R',
        b'ccollections\nCounter\n(ccollections\nCounter\ntR',
        text('os') + text('system') + b'\x93',
        text('os') + number(1) + b'\x93',
        b'(ios\nsystem\n',
        b'\x82\x01',
        b'Pabc\n',
        b'\x8a\x04\0\0\0\x7f0\x97',
        b'\x96' + struct.pack('<Q', 2**62),
        b'\x8d' + struct.pack('<Q', 2**62),
        b'r\xff\xff\xff\x7f',
        b'h\x07',
        b'u',
        b'',
        b'(e',
        b'}(Nu',
        b'}(]Nu',
        b'\x8f(]\x90',
        b'S"x\n',
        b'I' + b'9' * 5000 + b'\n',
    ],
)  # fmt: skip
def test_programs_written_by_hand_are_refused(tmp_path, program):
    write(tmp_path / 'x.pth', program)
    before = dict(vars(HistoryBuffer)), dict(vars(argparse.Namespace))
    with pytest.raises(CheckpointError, match='x.pth'):
        read_checkpoint(tmp_path / 'x.pth')
    assert (dict(vars(HistoryBuffer)), dict(vars(argparse.Namespace))) == before


@pytest.mark.parametrize(
    ('entries', 'message'),
    [
        ({}, 'not of torch.save'),
        ({'a/b/data.pkl': b'\x80\x02N.'}, 'not of torch.save'),
        ({'a/data.pkl': b'\x80\x02N.', 'b/data.pkl': b'\x80\x02N.'}, 'not of torch.save'),
        ({'a/data.pkl': b'\x80\x02N.', 'a/byteorder': b'big'}, 'another byte order'),
        ({'a/data.pkl': b''}, 'damaged|refused'),
        ({'a/data.pkl': b'\x80\x02N'}, 'refused|damaged'),
    ],
)
def test_other_archives(tmp_path, entries, message):
    with zipfile.ZipFile(tmp_path / 'x.pth', 'w') as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / 'x.pth')


def test_archives_that_grow_when_they_are_read(tmp_path):
    """Compressed zeros, and entries that share their bytes."""
    with zipfile.ZipFile(tmp_path / 'x.pth', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('a/data.pkl', b'\x80\x02' + b'N0' * 10**6 + b'N.')
    with pytest.raises(CheckpointError, match='compressed'):
        read_checkpoint(tmp_path / 'x.pth')
    with zipfile.ZipFile(tmp_path / 'y.pth', 'w') as archive:
        archive.writestr('a/data.pkl', b'\x80\x02N.')
        archive.writestr('a/data/0', b'\0' * 1000)
        entry = archive.getinfo('a/data/0')
        for number in range(1, 9):
            copy = zipfile.ZipInfo(f'a/data/{number}')
            for name in ('header_offset', 'CRC', 'compress_size', 'file_size'):
                setattr(copy, name, getattr(entry, name))
            archive.filelist.append(copy)
            archive.NameToInfo[copy.filename] = copy
    with pytest.raises(CheckpointError, match='overlap'):
        read_checkpoint(tmp_path / 'y.pth')
