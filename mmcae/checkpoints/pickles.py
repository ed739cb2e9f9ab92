"""Pickles read as data: an interpreter of pickle's opcodes that knows numbers, texts, containers, arrays and tensors, and nothing else.

Python's own unpickler calls what a file names. torch's `weights_only=True` calls what is on a list, which every library in the process may
extend, and believes the sizes a file states. Here no callable of a library is reachable from a file: each name that a file may use stands
for a small function of :mod:`.pickle_names`, and any other name refuses the file. Objects of known record classes become a
:class:`.pickle_names.Record`.
"""

import pickletools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO

import torch

from .pickle_names import HISTORY_BUFFER, Name, PickleRefused, Record, Storage, Unfinished, are_sizes, name_in_file


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
    elif isinstance(state, tuple):  # of a class that takes it apart itself
        state = dict(state=state)
    if not isinstance(state, Mapping):
        raise PickleRefused(f'an object of {record.name} with a {type(state).__name__} for attributes')
    if record.name == HISTORY_BUFFER:
        methods = state.get('statistics_methods', {})
        if set(state) - {'max_length', '_log_history', '_count_history', 'statistics_methods'} or not isinstance(methods, dict):
            raise PickleRefused(f'a HistoryBuffer with {", ".join(map(str, state))}')
        if any(name != method for name, method in methods.items()):
            raise PickleRefused('a HistoryBuffer with functions of its own')
    record.attributes.update(state)
