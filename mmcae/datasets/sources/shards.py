"""Many image files in a few large ones: tar files in WebDataset's layout, with an index beside each by which any image is read at once.

A packed folder holds `shard-000000.tar`, `shard-000001.tar`, ..., an index `shard-000000.npz`, ... for each, and `pack.json`, which lists
them. In a shard every image is a member `000000042.jpg`, its bytes as they were, followed by `000000042.json` with the `path` it had: what
the webdataset package reads as one sample, and `tar` unpacks. The index holds where an image's bytes lie, their CRC-32, and its path.

Why tar: anything can read it in twenty years, and the webdataset package streams it. That package is not what reads it here: it gives
streams, which are shuffled within a buffer only and cannot be resumed at a batch, and its indexed variants are under development. An offset
beside the tar file gives random access, so that samplers, subsets and exact resumption are those of a folder. Parquet would be read by the
block, hundreds of images for one; LMDB and HDF5 need one large file and a library to look into it.
"""

import json
import os
import tarfile
import zlib
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path, PurePosixPath

import numpy as np

from ...utils import remote
from ...utils.errors import DataError, StorageError
from ...utils.files import UnfinishedFile, atomic_file, may_pass, patiently, read_file, write_file

MANIFEST = 'pack.json'
VERSION = 1  # of the layout
BLOCK = tarfile.BLOCKSIZE


@dataclass
class ShardIndex:
    """Where the images of one or several shards lie. All arrays have one entry for each image.

    Args:
        offset: int64, first byte within the tar file.
        size: int64, bytes.
        checksum: uint32, CRC-32 of the bytes.
        path_end: int64, where its path ends in `paths`.
        paths: uint8, the paths relative to the packed folder's source, UTF-8, one after another.
    """

    offset: np.ndarray
    size: np.ndarray
    checksum: np.ndarray
    path_end: np.ndarray
    paths: np.ndarray

    def __len__(self) -> int:
        return len(self.offset)

    def path(self, i: int) -> str:
        start = self.path_end[i - 1] if i else 0
        return os.fsdecode(self.paths[start : self.path_end[i]].tobytes())

    def part(self, start: int, stop: int) -> 'ShardIndex':
        """The images from `start` up to `stop`."""
        begin = self.path_end[start - 1] if start else 0
        columns = {name: getattr(self, name)[start:stop] for name in self.__dataclass_fields__}
        paths = self.paths[begin : self.path_end[stop - 1]] if stop > start else self.paths[:0]
        return ShardIndex(**columns | dict(path_end=columns['path_end'] - begin, paths=paths))

    def save(self, file: Path):
        with atomic_file(file) as stream:
            np.savez(stream, **vars(self))

    @classmethod
    def load(cls, file: Path) -> 'ShardIndex':
        """Read an index file.

        Raises:
            DataError: It is missing, or holds something else.
        """
        try:
            with np.load(BytesIO(read_file(file)), allow_pickle=False) as arrays:
                return cls(**{name: arrays[name] for name in cls.__dataclass_fields__})
        except StorageError:
            raise
        except Exception as error:  # zip, numpy and the file system each have their own
            raise DataError(f'{file} cannot be read ({error}): without it {Path(file).stem}.tar cannot be used; copy it again') from error

    @classmethod
    def join(cls, parts: list['ShardIndex']) -> 'ShardIndex':
        shifts = np.cumsum([0, *(len(part.paths) for part in parts)])
        ends = [part.path_end + shift for part, shift in zip(parts, shifts, strict=False)]
        columns = {name: [getattr(part, name) for part in parts] for name in cls.__dataclass_fields__} | dict(path_end=ends)
        return cls(**{name: np.concatenate(column) for name, column in columns.items()})


class ShardWriter:
    """Writes one shard, which gets its name when :meth:`close` has read it back.

    Args:
        folder: The packed folder.
        name: Such as 'shard-000000'.
        first: Number of the first image; names of members count on from it.
    """

    def __init__(self, folder: Path, name: str, first: int):
        self.path = folder / f'{name}.tar'
        self.first = first
        self.entries: list[tuple[int, int, int]] = []
        self.paths: list[bytes] = []
        self.unfinished = UnfinishedFile(self.path)
        self.tar = tarfile.open(fileobj=self.unfinished.file, mode='w', format=tarfile.USTAR_FORMAT)

    @property
    def bytes(self) -> int:
        """Size so far."""
        return self.tar.offset

    def add(self, path: str, data: bytes):
        """Append an image file's bytes under its path relative to the source, with slashes."""
        key = f'{self.first + len(self.entries):09d}'
        self.entries.append((self.tar.offset + BLOCK, len(data), zlib.crc32(data)))
        self.paths.append(os.fsencode(path))
        self.add_member(key + PurePosixPath(path).suffix.lower(), data)
        self.add_member(f'{key}.json', json.dumps(dict(path=path)).encode())

    def add_member(self, name: str, data: bytes):
        member = tarfile.TarInfo(name)  # no time and no owner: the same images make the same bytes
        member.size = len(data)
        with self.unfinished.named_errors():
            self.tar.addfile(member, BytesIO(data))

    def close(self) -> dict:
        """Complete the shard and give it its name; returns its entry for the manifest.

        Raises:
            DataError: What was read back is not what was written.
        """
        with self.unfinished.named_errors():
            self.tar.close()
            self.unfinished.file.flush()
        offset, size, checksum = np.array(self.entries, np.int64).reshape(-1, 3).T
        index = ShardIndex(
            offset=offset,
            size=size,
            checksum=checksum.astype(np.uint32),
            path_end=np.cumsum([len(path) for path in self.paths], dtype=np.int64),
            paths=np.frombuffer(b''.join(self.paths), np.uint8),
        )
        verify_shard(self.unfinished.name, index)
        index.save(self.path.with_suffix('.npz'))
        self.unfinished.finish()
        return dict(name=self.path.stem, images=len(index), bytes=self.path.stat().st_size)

    def abandon(self):
        """Leave nothing of an unfinished shard."""
        self.unfinished.discard()


def verify_shard(file: Path, index: ShardIndex):
    """Read a whole shard and compare it with its index: number of images, places, paths and checksums.

    Raises:
        DataError: They differ; the message names the shard and the first image that does.
        StorageError: It cannot be read for reasons that tell nothing about its content.
    """
    patiently(lambda: compare_shard(file, index), file)


def compare_shard(file: Path, index: ShardIndex):
    """One try of :func:`verify_shard`."""
    try:
        with tarfile.open(file, 'r:') as tar:
            count = 0
            for member in tar:
                data = tar.extractfile(member).read()
                if member.name.endswith('.json'):
                    sidecar = json.loads(data)
                    if sidecar.get('path') != index.path(count - 1):
                        raise DataError(f'{file} is damaged at its image {count}: it has another path than the index says')
                    continue
                count += 1
                if count > len(index):
                    break
                i = count - 1
                if (member.offset_data, member.size, zlib.crc32(data)) != (index.offset[i], index.size[i], index.checksum[i]):
                    raise DataError(f'{file} is damaged at its image {count}, {index.path(i)}: the bytes are not those that were packed')
    except (tarfile.TarError, EOFError, OSError, ValueError, AttributeError) as error:
        if isinstance(error, DataError) or may_pass(error):
            raise
        raise DataError(f'{file} is damaged: {error}') from error
    if count != len(index):
        raise DataError(f'{file} has {"more than " * (count > len(index))}{min(count, len(index))} of {len(index)} images')


def size_of(file: str | Path) -> int | None:
    """Bytes of a local file or one of an address; None if it is not there."""
    if remote.is_remote(file):
        return patiently(lambda: remote.size(file), file)
    return file.stat().st_size if file.is_file() else None


@dataclass
class Manifest:
    """What is in a packed folder: `pack.json`.

    Args:
        shards: For each shard `name`, `images` and `bytes`.
        settings: What the packing was asked for; a run with others cannot go on with it.
        consumed: Files of the source that are done with, packed or left out.
        left_out: By reason, how many files were left out. `left_out.tsv` names them.
        left_out_bytes: Size of `left_out.tsv` at this point.
        complete: All files are done with.
    """

    shards: list[dict] = field(default_factory=list)
    settings: dict = field(default_factory=dict)
    consumed: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    left_out_bytes: int = 0
    complete: bool = False

    @property
    def images(self) -> int:
        return sum(shard['images'] for shard in self.shards)

    @property
    def bytes(self) -> int:
        return sum(shard['bytes'] for shard in self.shards)

    def save(self, folder: Path):
        write_file(folder / MANIFEST, json.dumps(dict(version=VERSION, **vars(self)), indent=1))

    @classmethod
    def load(cls, folder: Path) -> 'Manifest':
        """Read the manifest of a folder.

        Raises:
            DataError: There is none, or it is of another version or damaged.
            StorageError: It cannot be read for reasons that tell nothing about its content.
        """
        file = remote.join(folder, MANIFEST)
        try:
            content = json.loads(read_file(file))
            version = content.pop('version')
            if version == VERSION:
                return cls(**content)
        except FileNotFoundError:
            raise DataError(f'{folder} holds no packed images: it has no {MANIFEST}. mmcae pack makes one') from None
        except StorageError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f'{file} is damaged ({error}): copy it again') from error
        raise DataError(f'{file} is of version {version} of the layout, but this mmcae reads version {VERSION}: pack the images again')


class ShardReader:
    """Random access to the images of a packed folder, in any process that it is copied to.

    Args:
        folder: A packed folder, or its address; see :mod:`mmcae.utils.remote`.

    Raises:
        DataError: The folder is not complete, or a shard is missing, has been cut, or has another size than when it was packed.
    """

    MAX_OPEN = 64  # files at a time, for each process

    def __init__(self, folder: str | Path):
        self.folder = folder if remote.is_remote(folder) else Path(folder)
        manifest = Manifest.load(self.folder)
        if not manifest.complete:
            raise DataError(
                f'{folder} is not complete: its packing was interrupted after {manifest.consumed:,} files. '
                'The same command of mmcae pack goes on from there'
            )
        self.names = [shard['name'] for shard in manifest.shards]
        self.sizes = [shard['bytes'] for shard in manifest.shards]
        self.first = np.cumsum([0, *(shard['images'] for shard in manifest.shards)])
        parts = []
        for shard in manifest.shards:
            file = self.file(shard['name'])
            size = size_of(file)
            if size != shard['bytes']:
                found = 'is missing' if size is None else f'has {size:,} bytes'
                raise DataError(f'{file} {found}, but {shard["bytes"]:,} were packed: copy it again')
            index = remote.join(self.folder, f'{shard["name"]}.npz')
            parts.append(ShardIndex.load(index))
            if len(parts[-1]) != shard['images']:
                raise DataError(f'{index} lists {len(parts[-1])} images, but {shard["images"]} were packed: copy it again')
        self.index = ShardIndex.join(parts)
        self.files: OrderedDict[Path, int] = OrderedDict()

    def __len__(self) -> int:
        return int(self.first[-1])

    def __getstate__(self):
        return dict(vars(self), files=OrderedDict())  # a file descriptor means nothing in another process

    def path(self, i: int) -> str:
        """The path that image i had below the source folder."""
        return self.index.path(i)

    def place(self, i: int) -> str:
        """Where image i is now: the shard's file, and in it the path that it had."""
        return f'{self.part(i)[0]}/{self.path(i)}'

    def part(self, i: int) -> tuple[str | Path, int, int]:
        """The bytes of image i: the shard's file, and where in it they begin and end."""
        start = int(self.index.offset[i])
        return self.file(self.names[self.shard_of(i)]), start, start + int(self.index.size[i])

    def file(self, name: str) -> str | Path:
        """The tar file of a shard."""
        return remote.join(self.folder, f'{name}.tar')

    def shard_of(self, i: int) -> int:
        return int(np.searchsorted(self.first, i, side='right')) - 1

    def read(self, i: int) -> bytes:
        """The bytes of image i, as they were in its file.

        Raises:
            DataError: They are not those that were packed; the message names the shard and the image.
            StorageError: They cannot be read for reasons that tell nothing about them.
        """
        file, start, end = self.part(i)
        place = f'{file}/{self.path(i)}'

        def read():
            if remote.is_remote(self.folder):
                return remote.read(file, start, end)
            try:
                return os.pread(self.descriptor(file), end - start, start)
            except OSError:
                self.close(file)  # what was opened before a file server failed stays unusable
                raise

        try:
            data = patiently(read, place)
        except OSError as error:
            raise StorageError(f'{place} cannot be read: {error}. Copy the shard again, or change its permissions') from error
        if len(data) != end - start or zlib.crc32(data) != self.index.checksum[i]:
            raise DataError(
                f'{place}: the shard is damaged, the bytes are not those that were packed. Copy it again; '
                f'mmcae pack --verify {self.folder} finds all damage'
            )
        return data

    def descriptor(self, file: Path) -> int:
        """The open file of a shard; those used longest ago are closed."""
        if file in self.files:
            self.files.move_to_end(file)
            return self.files[file]
        if len(self.files) >= self.MAX_OPEN:
            self.close(next(iter(self.files)))
        self.files[file] = os.open(file, os.O_RDONLY)
        return self.files[file]

    def close(self, file: Path):
        """Close the file of a shard, if it is open."""
        if file in self.files:
            with suppress(OSError):  # a server that fails tells so here as well
                os.close(self.files.pop(file))
