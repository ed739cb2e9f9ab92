"""Pickles read as data: an interpreter of pickle's opcodes that knows numbers, texts, containers, arrays and tensors, and nothing else.

Python's own unpickler calls what a file names. torch's `weights_only=True` calls what is on a list, which every library in the process may
extend, and believes the sizes a file states. Here no callable of a library is reachable from a file: each name that a file may use stands
for a small function in this module, and any other name refuses the file. Objects of known record classes become a :class:`Record`.
"""

import pickletools
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

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


# ---------------------------------------------------------------- the interpreter


class Unpickler:
    """Interprets one pickle after the other of a stream.

    Args:
        load_storage: (dtype or None, key, number of elements) -> :class:`Storage`; how a file stores the bytes of tensors.
        records: Classes, or packages with a dot at the end, to read as records beside :data:`RECORDS`.
    """

    def __init__(self, load_storage: Callable[[torch.dtype | None, str, int], Storage] | None = None, records: Iterable[str] = ()):
        self.load_storage, self.records = load_storage, tuple(records)
        self.methods = {name[3:].upper(): getattr(self, name) for name in dir(self) if name.startswith('do_')}

    def load(self, stream: BinaryIO) -> Any:
        """The next object in a stream.

        Raises:
            PickleRefused: It is no pickle, it is cut off, or it holds more than plain data. Nothing of it has run.
        """
        self.stack: list = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name == 'STOP':
                    return finished(self.stack.pop())
                self.step(opcode.name, argument)
        except PickleRefused:
            raise
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, MemoryError, RuntimeError) as error:
            raise PickleRefused(f'no valid data ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else "?"})') from error
        raise PickleRefused('data without an end')

    def step(self, name: str, argument: Any):
        """Execute one opcode."""
        if name in VALUES:
            self.stack.append(argument)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name]())
        elif name in self.methods:
            self.methods[name](argument)
        else:
            raise PickleRefused(f'the instruction {name}')

    def do_proto(self, _):
        pass  # what differs between the protocols is in the opcodes

    do_frame = do_proto

    def do_put(self, place: int):
        self.memo[place] = self.stack[-1]
        if isinstance(self.stack[-1], Unfinished):
            self.stack[-1].places.append(place)

    do_binput = do_long_binput = do_put

    def do_memoize(self, _):
        self.do_put(len(self.memo))

    def do_get(self, place: int):
        self.stack.append(self.memo[place])

    do_binget = do_long_binget = do_get

    def above_mark(self) -> list:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def do_mark(self, _):
        self.marks.append(len(self.stack))

    def do_pop(self, _):
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()

    def do_pop_mark(self, _):
        self.above_mark()

    def do_dup(self, _):
        self.stack.append(self.stack[-1])

    def do_tuple(self, _):
        self.stack.append(tuple(map(finished, self.above_mark())))

    def do_tuple1(self, _):
        self.stack[-1:] = [tuple(map(finished, self.stack[-1:]))]

    def do_tuple2(self, _):
        self.stack[-2:] = [tuple(map(finished, self.stack[-2:]))]

    def do_tuple3(self, _):
        self.stack[-3:] = [tuple(map(finished, self.stack[-3:]))]

    def do_list(self, _):
        self.stack.append(list(map(finished, self.above_mark())))

    def do_dict(self, _):
        self.stack.append(pairs(self.above_mark()))

    def do_frozenset(self, _):
        self.stack.append(frozenset(self.above_mark()))

    def do_append(self, _):
        self.extend([self.stack.pop()])

    def do_appends(self, _):
        self.extend(self.above_mark())

    def do_additems(self, _):
        values = self.above_mark()
        if not isinstance(self.stack[-1], set):
            raise PickleRefused('elements of no set')
        self.stack[-1].update(values)

    def extend(self, values: list):
        target = self.stack[-1]
        if not isinstance(target, list | Record):
            raise PickleRefused('elements of no list')
        (target.items if isinstance(target, Record) else target).extend(map(finished, values))

    def do_setitem(self, _):
        value, key = self.stack.pop(), self.stack.pop()
        self.update(pairs([key, value]))

    def do_setitems(self, _):
        self.update(pairs(self.above_mark()))

    def update(self, values: dict):
        target = self.stack[-1]
        if isinstance(target, Record):
            target.items.extend(values.items())
        elif isinstance(target, dict):
            for key, value in values.items():  # Counter.update would add
                target[key] = value
        else:
            raise PickleRefused('entries of no dict')

    def do_global(self, argument: str):
        module, name = argument.split(' ', 1)
        self.stack.append(name_in_file(module, name, self.records))

    def do_stack_global(self, _):
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise PickleRefused('a name that is no text')
        self.stack.append(name_in_file(module, name, self.records))

    def do_reduce(self, _):
        args, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Name) or function.call is None or not isinstance(args, tuple):
            raise PickleRefused(f'a call of {function.name if isinstance(function, Name) else type(function).__name__}')
        self.stack.append(function.call(*args))

    do_newobj = do_reduce

    def do_newobj_ex(self, _):
        if self.stack.pop():
            raise PickleRefused('an object with named arguments')
        self.do_reduce(None)

    def do_build(self, _):
        state, target = finished(self.stack.pop()), self.stack[-1]
        if isinstance(target, Unfinished):
            self.stack[-1] = made = target.finish(state)
            self.memo.update(dict.fromkeys(target.places, made))
        elif isinstance(target, Record):
            set_attributes(target, state)
        elif isinstance(target, OrderedDict) and isinstance(state, dict) and set(state) <= {'_metadata'}:
            vars(target).update(state)  # what torch keeps beside a state dict: the versions of its modules
        elif state:
            raise PickleRefused(f'attributes of a {type(target).__name__}')

    def do_binpersid(self, _):
        self.storage(self.stack.pop())

    def storage(self, identity: Any):
        if isinstance(identity, tuple) and len(identity) == 4 and identity[0] == 'module' and isinstance(identity[1], Name):
            self.stack.append(identity[1])  # old files have the text of a class beside its name
            return
        if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != 'storage' or self.load_storage is None:
            raise PickleRefused('a reference to something outside')
        _, dtype, key, _, count, *views = identity
        kind = dtype is None or isinstance(dtype, torch.dtype)
        if not kind or not isinstance(key, str) or not are_sizes((count,)) or any(view is not None for view in views):
            raise PickleRefused('a storage of an unknown kind')
        self.stack.append(self.load_storage(dtype, key, count))


VALUES = {
    'INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1', 'LONG4', 'FLOAT', 'BINFLOAT', 'STRING', 'BINSTRING', 'SHORT_BINSTRING',
    'UNICODE', 'BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8', 'BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8', 'BYTEARRAY8',
}  # fmt: skip
CONSTANTS = {
    'NONE': lambda: None,
    'NEWTRUE': lambda: True,
    'NEWFALSE': lambda: False,
    'EMPTY_LIST': list,
    'EMPTY_DICT': dict,
    'EMPTY_SET': set,
    'EMPTY_TUPLE': tuple,
}


def finished(value: Any) -> Any:
    """A value that is complete.

    Raises:
        PickleRefused: An array or a number type whose content never came.
    """
    if isinstance(value, Unfinished):
        raise PickleRefused('an array without content')
    return value


def pairs(values: list) -> dict:
    """A dict of keys and values in turn."""
    if len(values) % 2:
        raise PickleRefused('a dict with a key that has no value')
    return {key: finished(value) for key, value in zip(values[::2], values[1::2], strict=True)}


def set_attributes(record: Record, state: Any):
    """Give a record its attributes.

    Raises:
        PickleRefused: They are no attributes; or those of a HistoryBuffer, which are known, are others.
    """
    if isinstance(state, tuple) and len(state) == 2 and all(part is None or isinstance(part, dict) for part in state):
        state = {**(state[0] or {}), **(state[1] or {})}
    if not isinstance(state, Mapping):
        raise PickleRefused(f'an object of {record.name} with a {type(state).__name__} for attributes')
    if record.name == HISTORY_BUFFER:
        methods = state.get('statistics_methods', {})
        if set(state) - {'max_length', '_log_history', '_count_history', 'statistics_methods'} or not isinstance(methods, dict):
            raise PickleRefused(f'a HistoryBuffer with {", ".join(map(str, state))}')
        if any(name != method for name, method in methods.items()):
            raise PickleRefused('a HistoryBuffer with functions of its own')
    record.attributes.update(state)
