"""Values of options read from text: every kind, quotes and brackets, and what the annotations of a reader say."""

import math
from collections.abc import Sequence
from typing import Any, List, Literal, Optional, Tuple, Union  # noqa: UP035  (as the libraries write them)

import pytest
import torch
from mmengine.config import DictAction

from mmcae.utils.configs.values import MISSING, NotLiteral, accepted_types, convert, literal, types_in
from mmcae.utils.errors import ConfigError


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('1', 1),
        ('-1', -1),
        ('007', 7),
        ('1_000', 1000),
        ('1e-3', 1e-3),
        ('.5', 0.5),
        ('5.', 5.0),
        ('inf', math.inf),
        ('True', True),
        ('false', False),
        ('None', None),
        ('none', 'none'),
        ('', ''),
        ('x=y', 'x=y'),
        ("'1'", '1'),
        ('"a, b"', 'a, b'),
        ("it's", "it's"),
        ('1.2.3', '1.2.3'),
        ('1e-3.pth', '1e-3.pth'),
        ('1,2,3', [1, 2, 3]),
        ('cat,dog', ['cat', 'dog']),
        ('a,b/imgs', 'a,b/imgs'),
        ('a, and b', 'a, and b'),
        ('[]', []),
        ('()', ()),
        ('(1)', (1,)),
        ('[1, 2]', [1, 2]),
        ('[a, b c, d/e.png]', ['a', 'b c', 'd/e.png']),
        ("['a,b', it's, \"[\"]", ['a,b', "it's", '[']),
        ('[1,(2,3)]', [1, (2, 3)]),
        ('(1,2),(3,4)', [(1, 2), (3, 4)]),
        ('[None,true,.5]', [None, True, 0.5]),
        ('{}', {}),
        ("{'a': [1, (2,)], 3: None}", {'a': [1, (2,)], 3: None}),
        ('dict(type=mmcae.CAEViT, arch=base, on=True, off=false)', dict(type='mmcae.CAEViT', arch='base', on=True, off=False)),
        ("[dict(type='A', lr=-1e-3), dict(b=dict(c={}))]", [dict(type='A', lr=-1e-3), dict(b=dict(c={}))]),
    ],
)
def test_literals(text, value):
    assert literal(text) == value and repr(literal(text)) == repr(value)


@pytest.mark.parametrize(
    'text', ['1', '-1.5', 'x', 'True', 'None', '1,2', '[a,b]', '(1,2)', '[(1,2),[a,b],c]', '[[1],[]]', 'a.b,c', "'x'", '1e5']
)
def test_what_users_of_mmengine_write_means_the_same(text):
    assert literal(text) == DictAction._parse_iterable(text)


@pytest.mark.parametrize(
    'text', ['[1', '(1,2]', '[(1]', '["a]', '{1', 'dict(1)', 'dict(**x)', 'dict(a=f(1))', '{1: 2}[1]', '{1, 2}', 'dict(a=1)+1']
)
def test_what_is_none(text):
    with pytest.raises(NotLiteral):
        literal(text)


@pytest.mark.parametrize(
    ('annotation', 'types'),
    [
        (str, {str}),
        (float, {int, float}),
        (Optional[str], {str, type(None)}),  # noqa: UP045
        (str | None, {str, type(None)}),
        (Union[str, List[str]], {str, list}),  # noqa: UP006, UP007
        (Sequence[int] | int, {int, list, tuple}),
        (Tuple[int, int], {tuple}),  # noqa: UP006
        (dict[str, int], {dict}),
        (Literal['a', 3], {str, int}),
        (Any, {object}),
        (torch.Tensor, {object}),
        (float | torch.Tensor, {int, float, object}),
    ],
)
def test_types_in_annotations(annotation, types):
    assert types_in(annotation) == types


def test_types_that_readers_accept():
    assert accepted_types(None, 'load_from', 'mmengine') == {str, type(None)}
    assert accepted_types(None, 'no_such_thing', 'mmengine') == set()
    assert accepted_types(dict(type='CheckpointHook'), 'interval', 'mmengine') == {int}
    assert accepted_types(dict(type='mmcae.CAEViT'), 'drop_path_rate', 'mmpretrain') == {int, float}
    assert accepted_types(dict(type='NoSuchThing'), 'x', 'mmengine') == accepted_types({}, 'x', 'mmengine') == set()


@pytest.mark.parametrize(
    ('text', 'old', 'accepted', 'value'),
    [
        ('[a', 'text', set(), '[a'),
        ('[a', MISSING, {str}, '[a'),
        (' x ', 'text', set(), ' x '),
        ('dict(a=1)', 'text', set(), dict(a=1)),
        ('[1,2]', 'text', {str}, '[1,2]'),
        ('[1,2]', 'text', {str, list}, [1, 2]),
        ('7', 'text', {str, int}, 7),
        ('7', None, set(), 7),
        ('7', None, {str, type(None)}, '7'),
        ('1e3', 4, set(), 1000),
        ('1e3', 4, {int, float}, 1000),
        ('[1]', ('x',), {list}, ('1',)),
        ('1.0', 4, set(), 1.0),  # a share where a number was: the point counts
        ('500', 1.0, set(), 500),
        ('(1,2)', 4, set(), (1, 2)),
        ('auto', 4, {str, int}, 'auto'),
        ('[1,2]', (0, 0), set(), (1, 2)),
        ('(a, 1)', ['x'], set(), ['a', '1']),
        ("'a,b',c", ['x'], set(), ['a,b', 'c']),
        ('3', (1, 2), set(), 3),
        ('x', ['y'], set(), 'x'),
        ('dict(type=X)', [dict()], set(), dict(type='X')),
        ('[dict(type=X)]', dict(), set(), [dict(type='X')]),
    ],
)
def test_values_by_what_they_replace(text, old, accepted, value):
    assert repr(convert(text, old, lambda: accepted)) == repr(value)


@pytest.mark.parametrize(
    ('text', 'old', 'accepted'),
    [
        ('None', 'text', {str}),
        ('None', 1.0, {float}),
        ('x', 1, {int}),
        ('True', 1, set()),
        ('1', True, set()),
        ('7', dict(a=1), set()),
        ('x', [1], set()),
        ('1', [dict()], set()),
        ('[1', 1, set()),
    ],
)
def test_values_that_cannot_be_meant(text, old, accepted):
    with pytest.raises(ConfigError):
        convert(text, old, lambda: accepted)
