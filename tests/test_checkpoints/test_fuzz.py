"""Random files: the reader answers each with its content or with a CheckpointError, in bounded memory, and nothing of them runs.

`make fuzz` does the same for ten minutes; MMCAE_FUZZ_SECONDS names another time.
"""

import io
import os
import pickletools
import random
import resource
import time
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.logging import HistoryBuffer

from mmcae.checkpoints import read_checkpoint
from mmcae.utils.errors import CheckpointError

SECONDS = float(os.environ.get('MMCAE_FUZZ_SECONDS', 24))
MEMORY = 2**31  # bytes of address space that reading may need beyond what the process has already
OPCODES = [op.code.encode('latin1') for op in pickletools.opcodes]
NAMES = [
    b'cos\nsystem\n', b'cbuiltins\ngetattr\n', b'cbuiltins\neval\n', b'cnumpy\ndtype\n', b'cnumpy\nndarray\n', b'cargparse\nNamespace\n',
    b'ctorch._utils\n_rebuild_tensor_v2\n', b'ctorch\nFloatStorage\n', b'ctorch\nfloat32\n', b'ccollections\nOrderedDict\n',
    b'cnumpy._core.multiarray\n_reconstruct\n', b'cnumpy._core.multiarray\nscalar\n', b'cmmengine.logging.history_buffer\nHistoryBuffer\n',
    b'ccopyreg\n_reconstructor\n', b'c_codecs\nencode\n',
]  # fmt: skip
ARGUMENTS = [b'\0', b'\xff', b'\xff\xff\xff\x7f', b'\xff' * 8, b'\1\0\0\0', b'x\n', b'1\n', b'-1\n', b'9' * 400 + b'\n', b'f8', b'storage']


@pytest.fixture(scope='module')
def bounded():
    """Refuse memory far beyond what the files are worth, so that a test that asks for it fails."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def seeds():
    """Files as training programs write them, in each format."""
    content = dict(
        state_dict=dict(w=torch.randn(3, 4), b=torch.arange(5), h=torch.ones(2, dtype=torch.bfloat16).expand(3, 2)),
        meta=dict(epoch=3, cfg='x = 1', array=np.arange(6.0).reshape(2, 3), number=np.float32(1)),
        message_hub=dict(log_scalars=dict(loss=HistoryBuffer([1.0, 2.0], [1, 1]))),
        optimizer=torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]).state_dict(),
    )
    for how in (dict(), dict(_use_new_zipfile_serialization=False), dict(pickle_protocol=4)):
        file = io.BytesIO()
        torch.save(content, file, **how)
        yield file.getvalue()


def read(path, data):
    """Read a file; whatever it is, it must not end otherwise."""
    path.write_bytes(data)
    before = dict(vars(HistoryBuffer))
    for mmap in (False, True):
        try:
            read_checkpoint(path, mmap=mmap)
        except CheckpointError:
            pass
    assert dict(vars(HistoryBuffer)) == before


def archive(program):
    """A file of torch.save around a pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as made:
        made.writestr('a/data.pkl', program)
        made.writestr('a/data/0', b'\0' * 64)
    return file.getvalue()


def mutated(data, rng):
    """A few bytes changed, cut out, repeated or put in."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        place, length = rng.randrange(len(data) or 1), rng.choice((1, 1, 2, 4, 8, 64))
        what = rng.randrange(5)
        if what == 0:
            data[place : place + 1] = bytes([rng.randrange(256)])
        elif what == 1:
            del data[place : place + length]
        elif what == 2:
            data[place:place] = data[place : place + length]
        elif what == 3:
            data[place:place] = rng.choice(NAMES + OPCODES + ARGUMENTS)
        else:
            data[place : place + length] = rng.choice(ARGUMENTS)[:length]
    return bytes(data)


def for_a_while(seconds, attempt):
    """Call it with one random generator after the other; a failure names the seed."""
    end, seed = time.monotonic() + seconds, 0
    while time.monotonic() < end or seed < 20:
        try:
            attempt(random.Random(seed))
        except BaseException as error:
            raise AssertionError(f'seed {seed}') from error
        seed += 1


def test_changed_files(tmp_path, bounded):
    originals = list(seeds())
    for_a_while(SECONDS / 3, lambda rng: read(tmp_path / 'x.pth', mutated(rng.choice(originals), rng)))


def test_changed_pickles(tmp_path, bounded):
    """The pickle inside a file is changed, which a zip archive's checksums keep from the test above."""
    with zipfile.ZipFile(io.BytesIO(next(seeds()))) as file:
        program = next(file.read(name) for name in file.namelist() if name.endswith('data.pkl'))
    for_a_while(SECONDS / 3, lambda rng: read(tmp_path / 'x.pth', archive(mutated(program, rng))))


def test_random_programs(tmp_path, bounded):
    """Programs of random instructions and names."""

    def attempt(rng):
        def part():
            return rng.choice(NAMES) if rng.random() < 0.4 else rng.choice(OPCODES) + rng.choice([b'', *ARGUMENTS])

        parts = [part() for _ in range(rng.randrange(40))]
        read(tmp_path / 'x.pth', archive(b'\x80\x02' + b''.join(parts) + b'.'))

    for_a_while(SECONDS / 3, attempt)


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=200), st.sampled_from(['x.pth', 'x.safetensors']))
def test_any_bytes(tmp_path_factory, data, name):
    path = tmp_path_factory.getbasetemp() / name
    for content in (data, archive(data), b'PK\3\4' + data):
        read(path, content)
