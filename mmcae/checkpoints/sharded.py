"""Checkpoints of torch.distributed.checkpoint (DCP), read without unpickling: folders to which each process writes its parts.

`.metadata` is a pickle of DCP's own classes; it tells in which file, and where in it, each part of a tensor lies. A part is a file of
torch.save within that file. mmcae.FSDP2Strategy writes such folders; beside them it puts `training.pth`, with all that is no tensor of the
model or of the optimizer.
"""

import io
import math
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..utils.errors import CheckpointError
from .pickle_names import PickleRefused, Record
from .pickles import Unpickler
from .pieces import METADATA, TRAINING, pieces_of

DCP = 'torch.distributed.checkpoint.'
# The classes that a `.metadata` may hold; any other name refuses it. Their objects are made here, from attributes that are plain data.
CLASSES = (
    'metadata.Metadata',
    'metadata.TensorStorageMetadata',
    'metadata.TensorProperties',
    'metadata.ChunkStorageMetadata',
    'metadata.BytesStorageMetadata',
    'metadata.MetadataIndex',
    'metadata.StorageMeta',
    'filesystem._StorageInfo',
)
# Names that are read and left out: layouts of memory, which are the same for all tensors of a model.
LEFT_OUT = (f'{DCP}metadata._MEM_FORMAT_ENCODING', 'torch.serialization._get_layout')
MOST_DIVIDED = 8  # dimensions; meshes of processes have two or three
MODEL, OPTIMIZER = 'state_dict.', 'optimizer.'  # before the names of tensors
# What a damaged file leads to; other errors of reading may pass.
INVALID = (AttributeError, KeyError, TypeError, ValueError, RuntimeError, FileNotFoundError, EOFError, zipfile.BadZipFile, zlib.error)


class ShardedCheckpoint:
    """A folder that DCP has written.

    Args:
        folder: With `.metadata`.
        read: Reads a file of torch.save; see :func:`.reading.read_zip`.

    Attributes:
        metadata: torch's `torch.distributed.checkpoint.metadata.Metadata`.
        tensors: By name torch's TensorStorageMetadata of each, with `size` and `chunks`.

    Raises:
        CheckpointError: Files are missing, `.metadata` holds other classes than DCP's, or the parts do not make up the tensors.
    """

    def __init__(self, folder: str | Path, read: Callable[[BinaryIO], Any]):
        self.folder, self.read = Path(folder), read
        pieces_of(self.folder)
        try:
            records = Unpickler(records=(*(DCP + name for name in CLASSES), *LEFT_OUT))
            self.metadata = revived(records.load(io.BytesIO((self.folder / METADATA).read_bytes())))
            stored = self.metadata.state_dict_metadata
            self.tensors = {name: entry for name, entry in stored.items() if hasattr(entry, 'chunks')}
            self.check_parts()
        except PickleRefused as error:
            raise CheckpointError(
                f'{self.folder / METADATA} was refused ({error}): only the classes of torch.distributed.checkpoint are read, because '
                'loading anything else can run code'
            ) from error
        except INVALID as error:
            raise self.damaged(METADATA, error) from error

    def check_parts(self):
        """Make sure that the parts of each tensor are within their files, and that each of its values is in one of them."""
        sizes = {}
        places = {(index.fqn, tuple(index.offset or ())): place for index, place in self.metadata.storage_data.items()}
        if len(places) != len(self.metadata.storage_data):
            raise ValueError('a part is in two places')
        for name, entry in self.tensors.items():
            for chunk in entry.chunks:
                place = places[name, tuple(chunk.offsets)]
                file = str(place.relative_path)
                if Path(file).name != file or place.transform_descriptors:
                    raise ValueError(f'{name} is in {file!r}, which is no plain file beside it')
                if file not in sizes:
                    sizes[file] = (self.folder / file).stat().st_size
                least = math.prod(chunk.sizes) * entry.properties.dtype.itemsize
                region = zip(chunk.offsets, chunk.sizes, entry.size, strict=True)
                inside = all(0 <= at <= at + size <= length for at, size, length in region)
                if not inside or not 0 <= place.offset <= place.offset + place.length <= sizes[file] or place.length < least:
                    raise ValueError(f'a part of {name} lies outside')
            if not tiled(entry):
                raise ValueError(f'the parts of {name} do not make it up: they overlap or leave something out')
        self.places = places

    def part(self, name: str, offsets: tuple[int, ...]) -> Tensor:
        """The part of a tensor that begins at these offsets, on the CPU.

        Raises:
            CheckpointError: It is damaged, or something other than a tensor of its size.
        """
        place = self.places[name, tuple(offsets)]
        try:
            with open(self.folder / place.relative_path, 'rb') as file:
                file.seek(place.offset)
                tensor = self.read(io.BytesIO(file.read(place.length)))
        except INVALID as error:  # PickleRefused is a ValueError
            raise self.damaged(place.relative_path, error) from error
        sizes = next(chunk.sizes for chunk in self.tensors[name].chunks if tuple(chunk.offsets) == tuple(offsets))
        if not isinstance(tensor, Tensor) or tensor.shape != sizes:
            raise self.damaged(place.relative_path, f'{name} is no tensor of the size {tuple(sizes)}')
        return tensor

    def whole(self, name: str) -> Tensor:
        """A tensor put together from its parts."""
        entry = self.tensors[name]
        whole = torch.empty(entry.size, dtype=entry.properties.dtype)
        for chunk in entry.chunks:
            region = tuple(slice(at, at + size) for at, size in zip(chunk.offsets, chunk.sizes, strict=True))
            whole[region] = self.part(name, chunk.offsets)
        return whole

    def check(self):
        """Compare all parts with their checksums."""
        for name, entry in self.tensors.items():
            for chunk in entry.chunks:
                self.part(name, chunk.offsets)

    def content(self, read_file: Callable[[Path], dict]) -> dict:
        """What the checkpoint holds, as a file of its own would hold it, without the optimizer."""
        names = [name for name in self.tensors if not name.startswith(OPTIMIZER)]
        content = read_file(self.folder / TRAINING) if (self.folder / TRAINING).is_file() else {}
        content.pop('optimizer', None)
        return {**content, 'state_dict': {name.removeprefix(MODEL): self.whole(name) for name in names}}

    def damaged(self, file: str, error: Exception | str) -> CheckpointError:
        """What to raise for a file of the folder."""
        return CheckpointError(f'{self.folder / file} is damaged or not of torch.distributed.checkpoint ({error})')


def tiled(entry: Any) -> bool:
    """Whether each value of a tensor is in exactly one of its parts, torch's TensorStorageMetadata.

    The corners of a box, with the sign of their parity, determine it. So parts make up a whole if their corners add up to its own.
    """
    divided = [axis for axis, length in enumerate(entry.size) if any(chunk.sizes[axis] != length for chunk in entry.chunks)]
    if len(divided) > MOST_DIVIDED:
        return False
    corners = Counter()
    for offsets, sizes, sign in [((0,) * len(entry.size), entry.size, -1), *((chunk.offsets, chunk.sizes, 1) for chunk in entry.chunks)]:
        for ends in product((0, 1), repeat=len(divided)):
            corners[tuple(offsets[axis] + end * sizes[axis] for axis, end in zip(divided, ends, strict=True))] += sign * (-1) ** sum(ends)
    return not any(corners.values())


def revived(value: Any) -> Any:
    """The objects of DCP in place of their records; those of other classes are left out."""
    if isinstance(value, dict):
        return {revived(key): revived(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(revived, value))
    if not isinstance(value, Record):
        return value
    name = value.name.removeprefix(DCP)
    if name not in CLASSES:
        return None
    module, _, kind = name.rpartition('.')
    kind = getattr(import_module(DCP + module), kind)
    if kind.__name__ == 'TensorProperties':
        return kind(dtype=value.attributes['state'][0])
    made = object.__new__(kind)
    vars(made).update({key: revived(item) for key, item in value.attributes.items()})
    return made
