"""What the names in a pickle stand for: small functions of this module in place of the functions and classes that a file asks for.

No callable of a library is reachable from a file. Any name that is not known here refuses the file.
"""

import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

STORAGE_DTYPES = {
    'Float': torch.float32,
    'Double': torch.float64,
    'Half': torch.float16,
    'BFloat16': torch.bfloat16,
    'Long': torch.int64,
    'Int': torch.int32,
    'Short': torch.int16,
    'Char': torch.int8,
    'Byte': torch.uint8,
    'Bool': torch.bool,
    'ComplexFloat': torch.complex64,
    'ComplexDouble': torch.complex128,
}
HISTORY_BUFFER = 'mmengine.logging.history_buffer.HistoryBuffer'
STATISTICS = ('min', 'max', 'current', 'mean')
# Classes of settings and logs that training programs put beside the tensors. They are read as records, never made.
RECORDS = (
    'argparse.Namespace',
    HISTORY_BUFFER,
    'mmengine.config.config.ConfigDict',
    'pathlib.PosixPath',
    'pathlib.PurePosixPath',
    'pathlib.WindowsPath',
    'pathlib.PureWindowsPath',
    'omegaconf.',
    'typing.Any',
    'pytorch_lightning.',
    'lightning.',
    'lightning_fabric.',
    'lightning_utilities.',
)
# A tensor may repeat the elements of its storage, as torch's expand does; beyond this many elements that is not believed.
MOST_REPEATED = 2**24


class PickleRefused(ValueError):
    """The file holds something other than plain data, or states sizes that it does not have."""


@dataclass(frozen=True)
class Name:
    """A name in a file: of a function of this module if `call` is given, else of something that can only be handed on.

    Args:
        name: With its module, such as 'collections.OrderedDict'.
        call: What takes the place of the function or class of this name.
    """

    name: str
    call: Callable[..., Any] | None = None


@dataclass(eq=False)
class Record:
    """What takes the place of an object: the name of its class, and its content as data.

    Attributes:
        name: Of the class, with its module.
        args: What its constructor was given.
        attributes: Its attributes by name.
        items: Pairs or values that it was filled with, as a container.
    """

    name: str
    args: tuple = ()
    attributes: dict = field(default_factory=dict)
    items: list = field(default_factory=list)


@dataclass(eq=False)
class Storage:
    """The bytes that tensors share.

    Args:
        data: uint8 (n,).
        dtype: None where the tensors tell it themselves.
    """

    data: Tensor
    dtype: torch.dtype | None


@dataclass(eq=False)
class Unfinished:
    """An array or a number type of numpy, whose content follows in the file: `finish` makes it of that."""

    finish: Callable[[Any], Any]
    places: list[int] = field(default_factory=list)  # in the memo


# ---------------------------------------------------------------- what the names in a file stand for


def plain_dtype(spec, *_) -> Unfinished:
    """numpy.dtype: numbers and booleans. Text, objects, records and arrays within an array are refused."""
    if not isinstance(spec, str) or not re.fullmatch(r'[biufc]\d{1,2}', spec):
        raise PickleRefused(f'an array of the type {spec!r}')

    def finish(state):
        if not isinstance(state, tuple) or len(state) < 8 or state[1] not in ('<', '>', '|', '=') or any(x is not None for x in state[2:5]):
            raise PickleRefused(f'an array of a type that is more than {spec!r}')
        return np.dtype(spec).newbyteorder(state[1])

    return Unfinished(finish)


def array_of(data, dtype, shape, order='C') -> np.ndarray:
    """An array of numbers from its bytes."""
    if not isinstance(data, bytes | bytearray) or not isinstance(dtype, np.dtype) or order not in ('C', 'F'):
        raise PickleRefused('an array of something other than numbers')
    array = np.frombuffer(bytearray(data), dtype)
    if not are_sizes(shape) or prod(shape) != array.size:
        raise PickleRefused(f'an array of the shape {shape!r} with {array.size} numbers')
    return array.reshape(shape, order=order)


def empty_array(*_) -> Unfinished:
    """numpy's _reconstruct: an array whose content follows."""

    def finish(state):
        if not isinstance(state, tuple) or len(state) != 5:
            raise PickleRefused('an array without content')
        _, shape, dtype, fortran, data = state
        return array_of(data, dtype, shape, 'F' if fortran else 'C')

    return Unfinished(finish)


def scalar_of(dtype, data) -> np.generic:
    """numpy's scalar."""
    return array_of(data, dtype, (1,))[0]


def encode(text, encoding) -> bytes:
    """_codecs.encode, by which old protocols write bytes."""
    if not isinstance(text, str) or encoding != 'latin1':
        raise PickleRefused('_codecs.encode')
    return text.encode('latin1')


def statistic_of(owner, name) -> str:
    """getattr, which mmengine's checkpoints use for the methods of HistoryBuffer: the name alone."""
    if not isinstance(owner, Name) or owner.name != HISTORY_BUFFER or name not in STATISTICS:
        raise PickleRefused('builtins.getattr')
    return name


def reconstructed(owner, *_) -> Record:
    """copyreg._reconstructor, by which old protocols make objects."""
    if not isinstance(owner, Name) or owner.call is None or not is_record(owner.name, RECORDS):
        raise PickleRefused(f'an object of {getattr(owner, "name", owner)!r}')
    return Record(owner.name)


def tensor_of(storage, offset, size, stride, *_, dtype: torch.dtype | None = None) -> Tensor:
    """torch._utils._rebuild_tensor and its later versions: a view of a storage, within its bounds."""
    if not isinstance(storage, Storage):
        raise PickleRefused('a tensor without a storage')
    dtype = storage.dtype or dtype
    if not isinstance(dtype, torch.dtype):
        raise PickleRefused('a tensor without a type')
    if not are_sizes((offset,)) or not are_sizes(size) or not are_sizes(stride) or len(size) != len(stride):
        raise PickleRefused(f'a tensor of the size {size!r} with the stride {stride!r} and the offset {offset!r}')
    typed = storage.data[: len(storage.data) // dtype.itemsize * dtype.itemsize].view(dtype)
    count = prod(size)
    end = offset + 1 + sum((length - 1) * step for length, step in zip(size, stride, strict=True)) if count else 0
    if end > len(typed) or count > max(len(typed), MOST_REPEATED):
        raise PickleRefused(f'a tensor of the size {tuple(size)} in a storage of {len(typed)} elements')
    return typed.as_strided(size, stride, offset) if count else typed.new_empty(size)


def typed_tensor_of(storage, offset, size, stride, requires_grad, hooks, dtype, *_) -> Tensor:
    """torch._utils._rebuild_tensor_v3."""
    return tensor_of(storage, offset, size, stride, dtype=dtype)


def data_of(data, *_) -> Tensor:
    """torch._utils._rebuild_parameter: its data."""
    if not isinstance(data, Tensor):
        raise PickleRefused('a parameter without a tensor')
    return data


def subclass_data(make, kind, args, *_) -> Tensor:
    """torch._tensor._rebuild_from_type_v2: the tensor without its subclass and attributes."""
    if not isinstance(make, Name) or make.call is None or not isinstance(args, tuple):
        raise PickleRefused('a tensor of an unknown kind')
    return data_of(make.call(*args))


def size_of(values=()) -> torch.Size:
    """torch.Size."""
    if not are_sizes(values):
        raise PickleRefused(f'the size {values!r}')
    return torch.Size(values)


def listed(make: Callable[[Iterable], Any]) -> Callable[..., Any]:
    """A constructor of a container for what a file holds already: it takes one list, tuple, set or dict, or nothing."""

    def call(values=()):
        if not isinstance(values, list | tuple | set | dict):
            raise PickleRefused(f'a container made of {type(values).__name__}')
        return make(values)

    return call


def are_sizes(values) -> bool:
    """Whether it is a sequence of whole numbers that can be sizes."""
    return isinstance(values, tuple | list) and len(values) <= 64 and all(type(v) is int and 0 <= v < 2**62 for v in values)


def prod(values: Iterable[int]) -> int:
    """The product."""
    result = 1
    for value in values:
        result *= value
    return result


FUNCTIONS: dict[str, Callable[..., Any]] = {
    'collections.OrderedDict': listed(OrderedDict),
    'collections.Counter': listed(Counter),
    'collections.defaultdict': lambda *_: {},
    'builtins.bytes': lambda: b'',  # how protocol 2 writes no bytes
    'builtins.set': listed(set),
    'builtins.frozenset': listed(frozenset),
    'builtins.list': listed(list),
    'builtins.dict': listed(dict),
    'builtins.getattr': statistic_of,
    'copyreg._reconstructor': reconstructed,
    '_codecs.encode': encode,
    'numpy.dtype': plain_dtype,
    'torch.Size': size_of,
    'torch.jit._pickle.restore_type_tag': lambda value, _: value,
    'torch.device': lambda *names: ':'.join(map(str, names)),
    'torch._utils._rebuild_tensor': tensor_of,
    'torch._utils._rebuild_tensor_v2': tensor_of,
    'torch._utils._rebuild_tensor_v3': typed_tensor_of,
    'torch._utils._rebuild_parameter': data_of,
    'torch._utils._rebuild_parameter_with_state': data_of,
    'torch._tensor._rebuild_from_type_v2': subclass_data,
}
for kind in ('int', 'tensor', 'double', 'bool'):  # of TorchScript
    FUNCTIONS[f'torch.jit._pickle.build_{kind}list'] = listed(list)
for numpy_core in ('numpy.core', 'numpy._core'):  # numpy 1 and 2
    FUNCTIONS[f'{numpy_core}.multiarray._reconstruct'] = empty_array
    FUNCTIONS[f'{numpy_core}.multiarray.scalar'] = scalar_of
    FUNCTIONS[f'{numpy_core}.numeric._frombuffer'] = array_of
# Classes that are handed to the functions above, and types that tell what defaultdict makes.
ONLY_NAMES = {'numpy.ndarray', 'torch.Tensor', 'torch.nn.parameter.Parameter', 'torch.nn.parameter.Buffer', 'builtins.object'}
ONLY_NAMES |= {f'builtins.{kind}' for kind in ('int', 'float', 'str', 'bool', 'tuple')}


def is_record(name: str, records: Iterable[str]) -> bool:
    """Whether a class is on a list of names and, with a dot at their end, of packages."""
    return any(name == record or record.endswith('.') and name.startswith(record) for record in records)


def name_in_file(module: str, name: str, records: Iterable[str] = ()) -> Any:
    """What `module.name` in a file stands for.

    Raises:
        PickleRefused: Nothing that is known.
    """
    module = {'__builtin__': 'builtins', 'copy_reg': 'copyreg'}.get(module, module)
    full = f'{module}.{name}'
    if full in FUNCTIONS:
        return Name(full, FUNCTIONS[full])
    if full in ONLY_NAMES:
        return Name(full)
    if full.startswith(f'{HISTORY_BUFFER}.') and full.rpartition('.')[2] in STATISTICS:
        return full.rpartition('.')[2]  # as newer protocols name a method
    storage = re.fullmatch(r'torch\.(?:cuda\.)?(\w+)Storage', full)
    if storage and storage[1] in STORAGE_DTYPES:
        return STORAGE_DTYPES[storage[1]]
    if full in ('torch.storage.UntypedStorage', 'torch.storage._UntypedStorage'):
        return None
    if module == 'torch' and isinstance(vars(torch).get(name), torch.dtype):
        return vars(torch)[name]
    if is_record(full, (*RECORDS, *records)):
        return Name(full, lambda *args: Record(full, args))
    raise PickleRefused(full)
