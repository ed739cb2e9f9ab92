"""Files of weights, read without running code from them, and written: torch.save's, TorchScript's and safetensors' formats."""

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..utils.errors import CheckpointError, StorageError
from ..utils.files import atomic_file, patiently
from .folders import INDEXES, is_model_folder, no_checkpoint, read_model_folder
from .pickle_names import PickleRefused, Storage
from .pickles import Unpickler
from .pieces import first_piece, is_sharded, read_pieces
from .sharded import ShardedCheckpoint

StateDict = dict[str, Tensor]

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # how files of torch before 1.6 begin
LEGACY_START = b'\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.'  # the same as a pickle
BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, KeyError, ValueError, RuntimeError, OSError)


def read_checkpoint(path: str | Path, mmap: bool = False, records: Iterable[str] = ()) -> Any:
    """Everything a checkpoint file holds, without running code from it.

    Tensors, numbers, texts, lists, dicts and numpy's arrays of numbers are read. Settings and logs of known classes, such as the authors'
    argparse.Namespace and mmengine's HistoryBuffer, become a :class:`.pickles.Record`. Anything else refuses the file.

    Args:
        path: A file of torch.save or TorchScript, or a .safetensors file, whose metadata become `meta`. Or a folder of pieces that
            FSDP, FSDP2 (torch.distributed.checkpoint) or DeepSpeed has written: its tensors are put together, and the optimizer's state is
            left out. Or a folder of a released model, with `model.safetensors`, its pieces, or `pytorch_model.bin`.
        mmap: Map the tensors into memory, to look at something else in a large file. Their checksums are not compared then.
        records: Further classes, or packages with a dot at the end, to read as records.

    Returns:
        The file's content; tensors are on the CPU, whatever device they were saved from.

    Raises:
        CheckpointError: There is no such file, it is damaged, or it holds more than plain data.
        StorageError: It cannot be read for a reason that tells nothing about its content.
    """
    path = Path(path).expanduser()
    if path.name in INDEXES:
        path = path.parent
    if is_sharded(path):
        return patiently(lambda: read_sharded(path).content(read_checkpoint), path)
    if first_piece(path) is not None:
        return read_pieces(path, read_checkpoint)
    if is_model_folder(path):
        return read_model_folder(path, read_checkpoint)
    if not path.is_file():
        raise no_checkpoint(path)
    try:
        return patiently(lambda: read_content(path, mmap, records), path)
    except (CheckpointError, StorageError):
        raise
    except PickleRefused as error:
        raise CheckpointError(
            f'{path} was refused ({error}): only tensors and plain data are read, because loading anything else can run code. '
            'Save the state_dict alone'
        ) from error
    except BROKEN as error:
        raise damaged(path, error) from error


def read_sharded(folder: str | Path) -> ShardedCheckpoint:
    """A folder of torch.distributed.checkpoint, whose tensors are read when they are asked for."""
    return ShardedCheckpoint(folder, partial(read_zip, mmap=False, records=()))


def read_content(path: Path, mmap: bool, records: Iterable[str]) -> Any:
    """The content of a file of any of the formats, with the errors of the libraries."""
    if path.suffix == '.safetensors':
        return read_safetensors(path)
    with open(path, 'rb') as file:
        start = file.read(len(LEGACY_START))
        file.seek(0)
        if start.startswith(b'PK'):
            return read_zip(file, mmap, records)
        if start == LEGACY_START:
            return read_legacy(file, records)
    raise damaged(path, f'it begins with {start[:12]!r}, like no file of torch.save; {kind_of(start)}')


def read_zip(file: BinaryIO, mmap: bool, records: Iterable[str]) -> Any:
    """A file of torch.save since torch 1.6, or of TorchScript: a zip archive of a pickle and the bytes of the storages."""
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        roots = [name.removesuffix('data.pkl') for name in entries if name.count('/') == 1 and name.endswith('/data.pkl')]
        if len(roots) != 1:
            raise ValueError('a zip archive, but not of torch.save')
        root, size = roots[0], file.seek(0, io.SEEK_END)
        plain = [entry for name, entry in entries.items() if name.startswith((f'{root}data', f'{root}byteorder'))]
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in plain):
            raise ValueError('compressed, as torch.save never writes')
        if sum(entry.file_size for entry in plain) > size:
            raise ValueError('its parts overlap')
        if f'{root}byteorder' in entries and archive.read(f'{root}byteorder') != b'little':
            raise ValueError('written on a machine of another byte order')
        storages: dict[str, Storage] = {}

        def load(dtype, key, count):
            if key not in storages:
                entry = entries[f'{root}data/{key}']
                if count * (dtype.itemsize if dtype else 1) > entry.file_size:
                    raise ValueError(f'the tensor data {key} are cut off')
                storages[key] = Storage(mapped(file, entry) if mmap else stored(archive, entry), dtype)
            if storages[key].dtype != dtype:
                raise ValueError(f'the tensor data {key} have two types')
            return storages[key]

        return Unpickler(load, records).load(io.BytesIO(archive.read(f'{root}data.pkl')))


def stored(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Tensor:
    """The bytes of an entry, compared with their checksum."""
    data = torch.empty(entry.file_size, dtype=torch.uint8)
    view, done = memoryview(data.numpy()), 0
    with archive.open(entry) as part:
        while done < len(view):
            read = part.readinto(view[done:])
            if not read:
                raise ValueError(f'{entry.filename} is cut off')
            done += read
        part.read(1)  # at the end the checksum is compared
    return data


def mapped(file: BinaryIO, entry: zipfile.ZipInfo) -> Tensor:
    """The bytes of an entry where they lie in the file."""
    file.seek(entry.header_offset)
    header = file.read(zipfile.sizeFileHeader)
    start = entry.header_offset + len(header) + int.from_bytes(header[26:28], 'little') + int.from_bytes(header[28:30], 'little')
    if not entry.file_size:
        return torch.empty(0, dtype=torch.uint8)
    return torch.from_numpy(np.memmap(file, np.uint8, 'c', start, entry.file_size))


def read_legacy(file: BinaryIO, records: Iterable[str]) -> Any:
    """A file of torch.save before torch 1.6: pickles one after the other, then the bytes of the storages."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    stream = Bounded(file, size)
    storages: dict[str, Storage] = {}

    def load(dtype, key, count):
        if key not in storages:
            if dtype is None or sum(len(s.data) for s in storages.values()) + count * dtype.itemsize > size:
                raise ValueError(f'the tensor data {key} are cut off')
            storages[key] = Storage(torch.empty(count * dtype.itemsize, dtype=torch.uint8), dtype)
        return storages[key]

    plain = Unpickler()
    magic, version, machine = (plain.load(stream) for _ in range(3))
    if (magic, version) != (LEGACY_MAGIC, 1001) or not isinstance(machine, dict) or machine.get('little_endian') is not True:
        raise ValueError('of an unknown version of torch.save')
    content = Unpickler(load, records).load(stream)
    keys = plain.load(stream)
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
        raise ValueError('the tensor data are not those that the content refers to')
    for key in keys:
        count, storage = int.from_bytes(file.read(8), 'little'), storages[key]
        if count * storage.dtype.itemsize != len(storage.data) or file.readinto(memoryview(storage.data.numpy())) != len(storage.data):
            raise ValueError(f'the tensor data {key} are cut off')
    return content


class Bounded:
    """A stream for pickletools: a length that the file states beyond its own end allocates nothing."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.size = file, size
        self.readline, self.tell = file.readline, file.tell

    def read(self, count: int) -> bytes:
        return self.file.read(min(count, self.size - self.file.tell()))


def read_safetensors(path: Path) -> dict:
    """The tensors of a .safetensors file, as `state_dict`, and its metadata, as `meta`: texts, those that are JSON read as such."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework='pt') as file:
            meta = {name: read_json(text) for name, text in (file.metadata() or {}).items()}
            return dict(meta=meta, state_dict={name: file.get_tensor(name) for name in file.keys()})
    except SafetensorError as error:
        raise damaged(path, error) from error


def read_json(text: str) -> Any:
    """What a text is as JSON, where that is a list or an object; else the text."""
    if text[:1] not in ('{', '['):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def damaged(path: Path, error: Exception | str) -> CheckpointError:
    """What to raise for a file that cannot be read as what its name says."""
    reason = error if isinstance(error, str) else f'{type(error).__name__}: {first_sentence(str(error))}'
    return CheckpointError(f'{path} is damaged or no checkpoint ({reason})')


def kind_of(start: bytes) -> str:
    """What a file is instead of a checkpoint, by its first bytes."""
    if start.startswith(b'\x80'):
        return 'it is a pickle of something else'
    if start.startswith((b'--', b'<', b'http')):
        return 'a log or a web page that a download left (wget writes the file with -O, and its log with -o)'
    return 'download or copy it again'


def first_sentence(text: str) -> str:
    """Of a library's message what is wrong; what follows is advice that does not apply here."""
    return text.strip().split('\n')[0].split('. ')[0].rstrip('.') or 'no reason given'


def write_state_dict(path: str | Path, state: StateDict, meta: Mapping | None = None, container: str = 'state_dict'):
    """Write tensors and plain metadata, as .safetensors or, for .pth and .pt, by torch.save; an interrupted write leaves no file.

    Args:
        path: The file; folders are made.
        state: The tensors.
        meta: Plain data beside them. In .safetensors each value is JSON.
        container: In .pth and .pt with metadata, the name beside `meta` under which the tensors stand.

    Raises:
        CheckpointError: The suffix is none of these.
    """
    path = Path(path)
    if path.suffix not in ('.pth', '.pt', '.safetensors'):
        raise CheckpointError(f'{path}: the name must end in .pth, .pt or .safetensors, which decides the format')
    with atomic_file(path) as file:
        if path.suffix == '.safetensors':
            from safetensors.torch import save

            # Each tensor on its own, since the format knows no shared memory.
            tensors = {key: value.clone().contiguous() for key, value in state.items()}
            texts = {name: json.dumps(value) for name, value in (meta or {}).items()}
            file.write(save(tensors, dict(format='pt', **texts)))
        else:
            torch.save({'meta': dict(meta), container: state} if meta else state, file)


def weights_checksum(state: Mapping) -> str:
    """Hash of the names and values of tensors, whatever their order, by which weights are known wherever they lie."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f'{name} {value.dtype} {tuple(value.shape)} '.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
