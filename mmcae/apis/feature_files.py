"""Files of features: .npz, .parquet and .zarr, written and read piece by piece, so that a million rows need not fit into memory.

All of them hold one row for each image: `ids` (int64, the image's place in its folder's order), `paths` (relative to the folder) and the
features, such as `cls` (C,) and `patch` (n, C); and a description, JSON, with the encoder's spec.
"""

import contextlib
import json
import os
import secrets
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from math import prod
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from ..utils.errors import ConfigError, DataError, DependencyError
from ..utils.files import atomic_file

LIBRARIES = {'.npz': None, '.parquet': 'pyarrow', '.zarr': 'zarr'}
ABOUT = 'about'  # the name of the description
Columns = Mapping[str, np.ndarray]


def check_format(path: str | Path):
    """Refuse names of files that cannot be written.

    Raises:
        ConfigError: The name ends in none of the known formats.
        DependencyError: A library is missing.
    """
    path = Path(path)
    if path.suffix not in LIBRARIES:
        raise ConfigError(f'{path}: the name of a file of features ends in {", ".join(LIBRARIES)}')
    library = LIBRARIES[path.suffix]
    if library and find_spec(library) is None:
        raise DependencyError(f'{path}: {path.suffix} needs {library}, which is not installed. Remedy: pip install {library}')


def write_features(path: str | Path, pieces: Callable[[Sequence[str]], Iterable[Columns]], about: Mapping):
    """Write a file of features; what was there is replaced when it is complete.

    Args:
        path: Its name says the format, see :func:`check_format`.
        pieces: `pieces(names)` gives the columns of these names, `None` for all, piece by piece: arrays (k, ...) with the same k. It is
            called once or several times.
        about: Plain data.
    """
    path = Path(path)
    {'.npz': write_npz, '.parquet': write_parquet, '.zarr': write_zarr}[path.suffix](path, pieces, json.dumps(about))


def read_features(path: str | Path, names: Sequence[str] | None = None, batch_size: int = 1024) -> Iterator[dict[str, np.ndarray]]:
    """The rows of a file of features, batch by batch: `for batch in read_features('features.npz', ['cls', 'paths']): ...`.

    Args:
        path: Of :func:`mmcae.embed`.
        names: Of columns; all by default.
        batch_size: Rows at a time; the last batch may have fewer.

    Yields:
        name -> array (rows, ...).

    Raises:
        DataError: It is no such file, or has no such column.
    """
    path = Path(path)
    check_format(path)
    known = [name for name in columns_of(path) if name != ABOUT]
    for name in names or ():
        if name not in known:
            raise DataError(f'{path} has no {name!r}; it has {", ".join(known)}')
    yield from {'.npz': read_npz, '.parquet': read_parquet, '.zarr': read_zarr}[path.suffix](path, list(names or known), batch_size)


def describe_features(path: str | Path) -> dict:
    """The description of a file of features: `folder`, `images`, `bad_files`, `features`, `encoder` (its spec) and so on."""
    path = Path(path)
    check_format(path)
    with readable(path):
        if path.suffix == '.npz':
            return json.loads(str(np.load(path)[ABOUT]))
        if path.suffix == '.parquet':
            import pyarrow.parquet

            return json.loads(pyarrow.parquet.read_schema(path).metadata[ABOUT.encode()])
        import zarr

        return json.loads(zarr.open_group(str(path), mode='r').attrs[ABOUT])


def columns_of(path: Path) -> list[str]:
    """Names of the columns of a file."""
    with readable(path):
        if path.suffix == '.npz':
            with zipfile.ZipFile(path) as file:
                return [name.removesuffix('.npy') for name in file.namelist()]
        if path.suffix == '.parquet':
            import pyarrow.parquet

            return pyarrow.parquet.read_schema(path).names
        import zarr

        return sorted(zarr.open_group(str(path), mode='r').array_keys())


@contextlib.contextmanager
def readable(path: Path):
    """What libraries raise on files that are absent or of another kind, as one error that names the file."""
    if not path.exists():
        raise DataError(f'There is no file of features {path}')
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f'{path} is no file of features: {error}') from error


# ---------------------------------------------------------------- .npz: one array after the other, as numpy writes them


def write_npz(path: Path, pieces, about: str):
    """One array after the other, each piece by piece."""
    rows, first = count_and_first(pieces)
    with atomic_file(path) as file, zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED) as archive:
        for name, like in first.items():
            widest = like.dtype
            if like.dtype.kind == 'U':
                widest = max((piece[name].dtype for piece in pieces([name])), key=lambda dtype: dtype.itemsize)
            with archive.open(f'{name}.npy', 'w', force_zip64=True) as member:
                header = dict(descr=npy.dtype_to_descr(widest), fortran_order=False, shape=(rows, *like.shape[1:]))
                npy.write_array_header_2_0(member, header)
                for piece in pieces([name]):
                    member.write(np.ascontiguousarray(piece[name], widest).tobytes())
        with archive.open(f'{ABOUT}.npy', 'w') as member:
            npy.write_array(member, np.array(about), allow_pickle=False)


def count_and_first(pieces) -> tuple[int, Columns]:
    """The number of rows, and the first piece."""
    first = next(iter(pieces(None)))
    return sum(len(piece['ids']) for piece in pieces(['ids'])), first


def read_npz(path: Path, names: list[str], batch_size: int):
    """See :func:`read_features`."""
    with contextlib.ExitStack() as stack:
        with readable(path):
            archive = stack.enter_context(zipfile.ZipFile(path))
            members, rows = {}, 0
            for name in names:
                member = stack.enter_context(archive.open(f'{name}.npy'))
                version = npy.read_magic(member)
                shape, _, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(member)
                members[name], rows = (member, shape[1:], dtype), shape[0]
        for start in range(0, rows, batch_size):
            count, batch = min(batch_size, rows - start), {}
            for name, (member, shape, dtype) in members.items():
                content = member.read(count * prod(shape) * dtype.itemsize)
                batch[name] = np.frombuffer(content, dtype).reshape(count, *shape)
            yield batch


# ---------------------------------------------------------------- .parquet: a group of rows for each piece


def write_parquet(path: Path, pieces, about: str):
    """One group of rows for each piece."""
    import pyarrow
    from pyarrow import parquet

    first = next(iter(pieces(None)))
    shapes = {name: like.shape[1:] for name, like in first.items()}
    fields = []
    for name, like in first.items():
        kind = pyarrow.string() if like.dtype.kind == 'U' else pyarrow.from_numpy_dtype(like.dtype)
        fields.append((name, pyarrow.list_(kind, prod(shapes[name])) if shapes[name] else kind))
    metadata = {ABOUT: about, 'shapes': json.dumps(shapes)}
    schema = pyarrow.schema(fields, metadata=metadata)
    with atomic_file(path) as file, parquet.ParquetWriter(file, schema) as writer:
        for piece in pieces(None):
            arrays = []
            for name, kind in fields:
                column = piece[name]
                if shapes[name]:
                    arrays.append(pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(column.ravel()), prod(shapes[name])))
                else:
                    arrays.append(pyarrow.array(valid(column) if column.dtype.kind == 'U' else column, kind))
            writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))


def valid(names: np.ndarray) -> list[str]:
    """Names of files as UTF-8 can hold them: bytes that are no UTF-8 are written as escapes."""
    return [name.encode('utf-8', 'backslashreplace').decode() for name in names.tolist()]


def read_parquet(path: Path, names: list[str], batch_size: int):
    """See :func:`read_features`."""
    from pyarrow import parquet

    with readable(path):
        file = parquet.ParquetFile(path)
        shapes = json.loads(file.schema_arrow.metadata[b'shapes'])
    with file:
        for table in file.iter_batches(batch_size, columns=names):
            batch = {}
            for name in names:
                column, shape = table.column(name), shapes[name]
                flat = column.flatten() if shape else column
                values = flat.to_numpy(zero_copy_only=False)
                batch[name] = values.astype(str) if values.dtype == object else values.reshape(len(column), *shape)
            yield batch


# ---------------------------------------------------------------- .zarr: a folder of arrays in chunks


def write_zarr(path: Path, pieces, about: str):
    """Chunks of the size of a piece; the folder takes its name when it is complete."""
    import zarr

    rows, first = count_and_first(pieces)
    scratch = path.with_name(f'unfinished-{os.getpid()}-{secrets.token_hex(4)}{path.suffix}')
    try:
        group = zarr.open_group(str(scratch), mode='w')
        make = group.create_array if hasattr(group, 'create_array') else group.create_dataset  # from zarr 3 on; before
        arrays = {}
        for name, like in first.items():
            dtype = str if like.dtype.kind == 'U' else like.dtype
            arrays[name] = make(name=name, shape=(rows, *like.shape[1:]), chunks=(len(like), *like.shape[1:]), dtype=dtype)
        start = 0
        for piece in pieces(None):
            count = len(piece['ids'])
            for name, array in arrays.items():
                column = piece[name]
                array[start : start + count] = np.array(valid(column), object) if column.dtype.kind == 'U' else column
            start += count
        group.attrs[ABOUT] = about
        if path.exists():
            shutil.rmtree(path)
        os.replace(scratch, path)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def read_zarr(path: Path, names: list[str], batch_size: int):
    """See :func:`read_features`."""
    import zarr

    with readable(path):
        group = zarr.open_group(str(path), mode='r')
        arrays = {name: group[name] for name in names}
    for start in range(0, next(iter(arrays.values())).shape[0], batch_size):
        batch = {name: np.asarray(array[start : start + batch_size]) for name, array in arrays.items()}
        yield {name: np.array(values.tolist()) if values.dtype.kind in 'OT' else values for name, values in batch.items()}
