"""Set variables of config files from outside: `data_root=/path`, and everything the files make of it follows.

A text config is a Python file. A name at its top that no library reads, such as `data_root`, is a variable of the file: its value has gone
into other settings by the time the file has been read, so a change must come before. The files are read again, with the new value assigned
right after every statement at the top of a file that assigns the name, in the config itself and in all its bases.

What to know about it:

- The statement itself is still executed, so it must not fail; what is computed from the variable in the same statement has the old value.
- Where a base and a config set the same name, both get the new value; where a file sets it twice, the first use follows as well.
- A path that ended in a slash keeps it, because configs write `data_root + 'train'`.
- Dotted keys (`pipeline.1.scale=64`) change a part of a variable.
"""

import ast
import copy
from contextlib import contextmanager
from dataclasses import dataclass, field

from .. import compat
from .errors import ConfigError


@dataclass
class Assignments:
    """New values for variables, and which of them were found in the files that have been read.

    Args:
        values: By name, or by dotted key for a part of a variable.
    """

    values: dict
    found: set = field(default_factory=set)

    def rewrite(self, module: ast.Module) -> ast.Module:
        """Put the new values into the code of one config file, behind what assigns the old ones."""
        names = {key.split('.')[0] for key in self.values}
        body = []
        for statement in module.body:
            body.append(statement)
            for name in sorted(names & bound_names(statement)):
                self.found.add(name)
                code = f'if {name!r} in globals(): {name} = __import__({__name__!r}, fromlist=["changed"]).changed({name!r}, {name})'
                body += [ast.copy_location(node, statement) for node in ast.parse(code).body]
        module.body = body
        return ast.fix_missing_locations(module)

    def apply(self, name: str, old):
        """The new value of a variable that a file has just set to `old`."""
        value = old
        for key, new in self.values.items():
            variable, _, rest = key.partition('.')
            if variable == name:
                value = replaced(value, rest.split('.'), new, key) if rest else like(old, new)
        return value


def bound_names(statement: ast.stmt) -> set[str]:
    """Names that a statement assigns in the file's own scope, however deep in tuples, branches or loops."""
    scopes = ast.FunctionDef | ast.ClassDef | ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
    names, nodes = set(), [statement]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        if not isinstance(node, scopes):
            nodes += ast.iter_child_nodes(node)
    return names


def like(old, new):
    """`new` with the slash at its end that `old` had."""
    both = isinstance(old, str) and isinstance(new, str)
    return new + '/' if both and old.endswith('/') and new and not new.endswith('/') else new


def replaced(value, path: list[str], new, key: str):
    """A copy of a nested value with one part exchanged.

    Raises:
        ConfigError: There is no such part.
    """
    value = copy.copy(value)
    part = path[0]
    if isinstance(value, list | tuple):
        if not part.isdigit() or int(part) >= len(value):
            raise ConfigError(f"--cfg-options {key}: '{part}' is no number below {len(value)}, the length of the list there")
        items = list(value)
        items[int(part)] = replaced(items[int(part)], path[1:], new, key) if path[1:] else like(items[int(part)], new)
        return type(value)(items)
    if isinstance(value, dict):
        old = value.get(part, {})
        value[part] = replaced(old, path[1:], new, key) if path[1:] else like(old, new)
        return value
    raise ConfigError(f'--cfg-options {key}: {value!r} has no part {part!r}')


_current: list[Assignments] = []  # what the code of the config files, which is executed far from here, asks for


@contextmanager
def assigning(values: dict):
    """Read config files with other values of their variables, while the context lasts.

    Args:
        values (dict[str, Any]): By name, or by dotted key.

    Yields:
        Assignments: To see which names were found.
    """
    assignments = Assignments(values)
    _current.append(assignments)
    try:
        with compat.rewritten_configs(assignments.rewrite):
            yield assignments
    finally:
        _current.pop()


def changed(name: str, old):
    """The new value of a variable; the code of a config file calls it."""
    return _current[-1].apply(name, old)
