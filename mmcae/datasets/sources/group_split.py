"""Divide images into training and validation by patient, slide or whatever else must not be on both sides."""

import hashlib
import re
from collections.abc import Mapping, Sequence

from ...utils.errors import ConfigError, DataError


def group_split(paths: Sequence[str], pattern: str, val_share: float, seed: int = 0) -> dict[str, list[str]]:
    """Deal whole groups of image files to training and validation.

    Args:
        paths: Relative paths.
        pattern: Regular expression that finds the id of the group in a path: its first group in parentheses, or all that matches.
        val_share: Share of the images that validation should get, in (0, 1); it gets whole groups, as near to that as they allow.
        seed: Another seed deals other groups to validation.

    Returns:
        `train` and `val`: ids of their groups, sorted. :func:`groups_of` tells which one a path belongs to.

    Raises:
        ConfigError: The expression is none.
        DataError: A path has no id, or there is only one id.
    """
    sizes: dict[str, int] = {}
    without = []
    for path, name in zip(paths, groups_of(paths, pattern), strict=True):
        if name:
            sizes[name] = sizes.get(name, 0) + 1
        else:
            without.append(path)
    if without:
        raise DataError(
            f'--split-by {pattern!r} finds no id in {len(without):,} of {len(paths):,} paths, such as {", ".join(without[:3])}: whose '
            'they are is unknown. Correct the expression, or leave them out by a list of files (--list)'
        )
    if len(sizes) < 2:
        raise DataError(f'--split-by {pattern!r} finds one id alone, {next(iter(sizes))!r}: there is nothing to divide')
    val = take_groups(sizes, val_share * len(paths), seed)
    return dict(train=sorted(sizes.keys() - set(val)), val=sorted(val))


def take_groups(sizes: Mapping[str, int], wanted: float, seed: int = 0) -> list[str]:
    """Choose whole groups at random that have about so many images together: one at least, and never all.

    Args:
        sizes: Images of each group, two groups at least.
        wanted: Number of images.
        seed: Another seed chooses other groups.
    """
    held, taken = 0, []
    for name in sorted(sizes, key=lambda name: hashlib.sha256(f'{seed}/{name}'.encode(errors='surrogateescape')).digest()):
        nearer = abs(held + sizes[name] - wanted) < abs(held - wanted)
        if nearer and len(taken) < len(sizes) - 1:
            taken.append(name)
            held += sizes[name]
    return taken or [min(sizes, key=lambda name: (sizes[name], name))]  # every group is more than twice as large as what was wanted


def groups_of(paths: Sequence[str], pattern: str) -> list[str | None]:
    """The id of each path's group; None for paths without one.

    Raises:
        ConfigError: The expression is none.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f'--split-by {pattern!r} is no regular expression: {error}') from error
    found = (expression.search(path) for path in paths)
    return [match and match[1 if expression.groups else 0] for match in found]
