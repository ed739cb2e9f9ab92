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
from dataclasses import dataclass, field

from mmengine.config import Config, ConfigDict

from ..errors import ConfigError


@dataclass
class Assignments:
    """New values for variables, and which of them were found in the files that have been read.

    Args:
        values: By name, or by dotted key for a part of a variable.
    """

    FUNCTION = '__assign__'  # what the code of the config files calls :meth:`apply` by

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
                code = f'if {name!r} in globals(): {name} = {self.FUNCTION}({name!r}, {name})'
                body += [ast.copy_location(node, statement) for node in ast.parse(code).body]
        module.body = body
        return ast.fix_missing_locations(module)

    def apply(self, name: str, old):
        """The new value of a variable that a file has just set to `old`."""
        value = old
        for key, new in self.values.items():
            variable, _, rest = key.partition('.')
            if variable == name:
                value = replaced(value, rest.split('.'), new, key) if rest else merged(old, new)
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


def merged(old, new):
    """The value that comes of putting `new` in the place of `old`.

    Of two dicts the new one changes those parts of the old that it names, unless it has `_delete_=True`, as between a config and its base.
    A text gets the slash at its end that the old one had.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        return Config._merge_a_into_b({'_': new}, {'_': ConfigDict(old)})['_']
    both = isinstance(old, str) and isinstance(new, str)
    return new + '/' if both and old.endswith('/') and new and not new.endswith('/') else new


def replaced(value, path: list[str], new, key: str):
    """A copy of a nested value with one part exchanged.

    Args:
        value: A dict, list or tuple.
        path: Names and numbers of the part.
        new: See :func:`merged`. True for a part `_delete_` empties the dict that it is in.
        key: The path as the user wrote it, for messages.

    Raises:
        ConfigError: There is no such part.
    """
    part, rest = path[0], path[1:]
    if isinstance(value, list | tuple):
        if not part.isdigit() or int(part) >= len(value):
            raise ConfigError(f"--cfg-options {key}: '{part}' is no number below {len(value)}, the length of the list there")
        items = list(value)
        items[int(part)] = replaced(items[int(part)], rest, new, key) if rest else merged(items[int(part)], new)
        return type(value)(items)
    if isinstance(value, dict):
        if part == '_delete_':
            return ConfigDict() if new else value
        value = copy.copy(value)
        old = value.get(part)
        value[part] = replaced(ConfigDict() if old is None else old, rest, new, key) if rest else merged(old, new)
        return value
    raise ConfigError(f'--cfg-options {key}: {value!r} has no part {part!r}')
