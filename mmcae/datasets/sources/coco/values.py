"""The numbers in a COCO file: what can be meant by one number only is read as that, everything else is refused."""

import re
from math import inf

TEXT = re.compile(r'[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?', re.ASCII)


def number(value):
    """A number, also one that is written as a text.

    Args:
        value: Anything that a JSON file can hold.

    Returns:
        int | float: It may be infinite or not a number, which JSON files of Python can hold too.

    Raises:
        ValueError: It is none; truth values are none either.
    """
    if isinstance(value, str) and TEXT.fullmatch(value.strip()):
        whole = value.strip().lstrip('+-').isdigit()
        value = int(value) if whole and len(value) < 20 else float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError
    return value


def real(value) -> int | float:
    """:func:`number`, where integers that no float can hold are infinite."""
    value = number(value)
    return value if type(value) is float or abs(value) < 1 << 1000 else inf


def whole(value) -> int:
    """:func:`number`, which has to be an integer, such as 3, 3.0 or "3"; ValueError otherwise."""
    value = number(value)
    if isinstance(value, float) and not value.is_integer():
        raise ValueError
    return int(value)


def numbers(values) -> list[int | float]:
    """A list of numbers; ValueError if it is none."""
    if not isinstance(values, list):
        raise ValueError
    return values if {*map(type, values)} <= {int, float} else [number(value) for value in values]


def identity(value) -> int | str:
    """What an id stands for: 7, 7.0 and "7" are the same, other texts stand for themselves.

    Raises:
        ValueError: It is neither a whole number nor a text.
    """
    if type(value) is int:
        return value
    try:
        return whole(value)
    except ValueError:
        if isinstance(value, str) and value.strip():
            return value
        raise


def flag(value) -> int:
    """0 or 1, also as a truth value or a text; 0 for null. ValueError otherwise."""
    value = int(value) if isinstance(value, bool) else 0 if value is None else number(value)
    if value not in (0, 1):
        raise ValueError
    return int(value)


def shown(value, most: int = 60) -> str:
    """A value of the file, for a message."""
    text = 'null' if value is None else repr(value)
    return text if len(text) <= most else f'{text[:most]} ...'


def kind(value) -> str:
    """The type of a value of the file, for a message."""
    return 'null' if value is None else f'of the type {type(value).__name__}'
