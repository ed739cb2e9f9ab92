"""What the text on the right of `--cfg-options key=value` stands for: by the value that it replaces, and by the class that will read it.

- Where a text stands, the option is a text, character by character: names of folders such as `2024`, `a,b` or `lr=1e-3` need no quotes.
  Only `~/` at its beginning is the home folder, as not every shell sees to it.
- Where the annotations of its reader allow other types, too, as in `metric: str | list[str]`, what is written as one is read as one.
- A number replaces a number, True or False a bool; lists keep their type (list or tuple) and, if they held texts, the type of their items.
- Otherwise, as under new names, the value is read as Python would: numbers, None, 'quoted texts', [lists], (tuples), {'dicts': 1},
  dict(type='X'). As in mmengine, texts in lists need no quotes, and `a,b` is a list.
"""

import ast
import inspect
import os
import re
import types
import typing
from collections.abc import Mapping, Sequence

from mmengine.config import ConfigDict
from mmengine.registry import Registry
from mmengine.runner import FlexibleRunner, Runner

from ... import compat
from ..errors import ConfigError

MISSING = object()  # in the place of the old value, under a new name
# Settings whose readers have no annotations, or wrong ones.
TYPES = {'type': {str}, 'checkpoint': {str}, 'loss_scale': {str, int, float, dict}}
CLOSING = {'[': ']', '(': ')', '{': '}'}


class NotLiteral(ValueError):
    """A value in brackets that is no list, tuple or dict."""


# ---------------------------------------------------------------- reading


def literal(text):
    """The value of a text, whatever it may be.

    Args:
        text (str): As written on the command line.

    Returns:
        Any: A text, number, bool, None, list, tuple or dict.

    Raises:
        NotLiteral: It begins like a list, a tuple or a dict and is none.
    """
    text = text.strip()
    if text.startswith(('{', '[', '(', 'dict(')) and len(items := split_items(text)) > 1:
        return [literal(item) for item in items]
    if text.startswith(('{', 'dict(')):
        return dict_of(text)
    if text.startswith(('[', '(')):
        if not text.endswith(CLOSING[text[0]]):
            raise NotLiteral(f'it begins with {text[0]} and does not end with {CLOSING[text[0]]}')
        items = [literal(item) for item in split_items(text[1:-1])]
        return items if text[0] == '[' else tuple(items)
    value = scalar(text)
    if isinstance(value, str) and value == text and ',' in text:
        items = split_items(text)
        if all(re.fullmatch(r'[\w.+-]+|[\[({].*|\'.*\'|".*"', item) for item in items):
            return [literal(item) for item in items]
    return value


def scalar(text):
    """A number, bool, None, or the text, without its quotes."""
    if text == 'None':
        return None
    if text.lower() in ('true', 'false'):
        return text.lower() == 'true'
    if re.fullmatch(r'[-+]?\d[\d_]*', text):
        return int(text)
    if re.fullmatch(r'[-+]?((\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|inf|nan)', text):
        return float(text)
    return unquoted(text)


def unquoted(text):
    """A text without the quotes around it, if it is a Python literal; else as it is, but for a `~/` at its beginning."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in '\'"':
        try:
            value = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            return text
        return value if isinstance(value, str) else text
    return os.path.expanduser(text) if text.startswith('~/') else text


def split_items(text):
    """The parts of a text between the commas that are in no brackets and no quotes, without blanks around them."""
    items, start, stack, quote = [], 0, [], ''
    for index, character in enumerate(text):
        if quote:
            quote = '' if character == quote and text[index - 1] != '\\' else quote
        elif character in '\'"' and text[:index].rstrip()[-1:] in ('', *',[({=:'):
            quote = character  # one inside of a word is an apostrophe
        elif character in CLOSING:
            stack.append(CLOSING[character])
        elif stack and character in '])}':
            if character != stack.pop():
                raise NotLiteral('its brackets or quotes do not match')
        elif character == ',' and not stack:
            items.append(text[start:index].strip())
            start = index + 1
    if stack or quote:
        raise NotLiteral('its brackets or quotes do not match')
    rest = text[start:].strip()
    return [*items, rest] if rest else items


def dict_of(text):
    """The dict that `{...}` or `dict(...)` stands for; names in it, such as mmcae.CAEViT, are texts."""

    class ToLiteral(ast.NodeTransformer):
        def visit_Call(self, node):
            if getattr(node.func, 'id', '') != 'dict' or node.args or not all(word.arg for word in node.keywords):
                raise NotLiteral(f'{ast.unparse(node)} is a call')
            pairs = [(ast.Constant(word.arg), self.visit(word.value)) for word in node.keywords]
            return ast.Dict([key for key, _ in pairs], [value for _, value in pairs])

        def visit_Name(self, node):
            return ast.Constant({'true': True, 'false': False}.get(node.id, node.id))

        def visit_Attribute(self, node):
            return ast.Constant(ast.unparse(node))

    try:
        value = ast.literal_eval(ToLiteral().visit(ast.parse(text, mode='eval')).body)
    except NotLiteral:
        raise
    except (SyntaxError, ValueError, TypeError, RecursionError) as error:
        reason = getattr(error, 'msg', error)
        raise NotLiteral(f'it is no Python literal ({reason}); texts in it that are no names need quotes') from error
    if not isinstance(value, dict):
        raise NotLiteral('it begins like a dict')
    return value


# ---------------------------------------------------------------- types


def convert(text, old, accepted=set):
    """The value that an option gives to a setting.

    Args:
        text (str): As written on the command line.
        old (Any): The value of the setting so far; MISSING where there is none.
        accepted (Callable[[], Set[type]]): Tells the types that its reader takes, see :func:`accepted_types`. It is asked only where the
            value is of another kind than the old one, because the answer may import libraries.

    Returns:
        Any: The new value.

    Raises:
        ConfigError: It cannot be meant. The message begins with what was expected.
    """
    is_new = old is MISSING or old is None
    try:
        value = literal(text)
    except NotLiteral as error:
        if isinstance(old, str) or (is_new and str in accepted()):
            return unquoted(text)
        raise ConfigError(f'{error}. A text that begins with a bracket needs quotes, as in "key=\'[a\'"') from error
    if isinstance(value, str):
        value = unquoted(text)  # with the blanks around it
    if kind(value) is kind(old):
        return alike(text, value, old)
    if is_new and kind(value) in (str, None):
        return value
    types = accepted()
    if type(value) in types or (isinstance(old, str) and isinstance(value, dict)):
        return value
    if is_new:
        return unquoted(text) if str in types else value
    if value is None:
        if types or isinstance(old, str | bool):
            raise ConfigError(f'expected {expected(old)}; None is no value for it')
        return None
    if isinstance(old, str):
        return unquoted(text)
    if isinstance(old, dict) and kind(value) is not list:
        raise ConfigError(f'it has parts ({", ".join(map(str, old))}); set one of them')
    if not compatible(value, old):
        raise ConfigError(f'expected {expected(old)}')
    return value


def kind(value):
    """Which of str, bool, float (any number), list (or tuple), dict a value is; None for others."""
    kinds = {str: str, bool: bool, int: float, float: float, list: list, tuple: list}
    return dict if isinstance(value, dict) else kinds.get(type(value))


def alike(text, value, old):
    """A value of the kind of `old` in its type: a list of texts stays one, a tuple stays one, 1e3 in the place of a whole number is one."""
    if kind(old) is float:
        whole = isinstance(old, int) and isinstance(value, float) and '.' not in text and value.is_integer()
        return int(value) if whole else value
    if kind(old) is not list:
        return value
    if old and all(isinstance(item, str) for item in old) and not any(kind(item) in (list, dict) for item in value):
        inner = text.strip()
        value = [unquoted(item) for item in split_items(inner[1:-1] if inner[0] in CLOSING else inner)]
    return type(old)(value)


def compatible(value, old):
    """Whether a value of another kind can be meant where the reader is not known: one or several numbers, texts or dicts."""
    if kind(old) in (float, dict):
        return kind(value) is list
    return kind(old) is list and (kind(value) is dict or all(kind(item) is kind(value) for item in old))


def expected(old, most=80):
    """What takes the place of a value, for a message."""
    if isinstance(old, bool):
        return 'True or False'
    if isinstance(old, dict):
        return f'a dict with {", ".join(map(str, old))}'
    kinds = {str: 'text', int: 'number', float: 'number', list: 'list', tuple: 'tuple'}
    text = repr(old)
    return f'a {kinds.get(type(old), type(old).__name__)}, as {text if len(text) <= most else text[:most] + " ..."} now'


# ---------------------------------------------------------------- readers


def accepted_types(node, name, scope):
    """The types that the reader of a setting takes by its annotations.

    Args:
        node (dict | None): The dict that the setting is in; None for a name at the top of the config.
        name (str): The setting.
        scope (str): The config's default_scope.

    Returns:
        Set[type]: Out of str, int, float, bool, list, tuple, dict and NoneType; empty where it is not known.
    """
    if name in TYPES:
        return TYPES[name]
    readers = (Runner, FlexibleRunner) if node is None else [class_of(node.get('type'), scope)]
    for reader in filter(None, readers):
        try:
            parameter = inspect.signature(reader).parameters.get(name)
            hints = typing.get_type_hints(reader.__init__ if inspect.isclass(reader) else reader)
        except Exception:  # annotations can hold anything, also names that exist for type checkers alone
            continue
        if parameter is not None:
            return types_in(hints[name] if name in hints else object) - {object} | ({type(None)} if parameter.default is None else set())
    return set()


def class_of(kind, scope):
    """The class or function that a `type` names in any of mmengine's registries, or None."""
    if kind is None or not isinstance(kind, str):
        return kind
    if scope == 'mmpretrain':
        compat.import_mmpretrain()
    from mmengine import registry as mmengine_registry

    for registry in vars(mmengine_registry).values():
        if isinstance(registry, Registry):
            try:
                with registry.switch_scope_and_registry(scope) as current:
                    found = current.get(kind)
            except Exception:  # a library that is not installed, a name that is none: the config is checked for these elsewhere
                continue
            if found is not None:
                return found
    return None


def types_in(annotation):
    """Plain types in an annotation; `object` stands for whatever else is in it."""
    plain = {str: {str}, int: {int}, float: {int, float}, bool: {bool}, type(None): {type(None)}, list: {list}, tuple: {tuple}}
    if annotation in plain:
        return plain[annotation]
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return set().union(*(types_in(part) for part in typing.get_args(annotation)))
    if origin is typing.Literal:
        return {type(value) for value in typing.get_args(annotation)}
    origin = origin or annotation
    if inspect.isclass(origin):
        if issubclass(origin, Mapping | dict | ConfigDict):
            return {dict}
        if issubclass(origin, tuple | list):
            return {origin}
        if issubclass(Sequence, origin) and origin is not object:
            return {list, tuple}
    return {object}
