"""The files that come with mmcae: its tools, and its configs by short names such as `cae/cae_vit-small_folder`.

In an installed package they lie in `.mim`, where mim and mmengine.hub look for them; in a checkout beside the package.
"""

import ast
import difflib
import functools
import os
import sys
from pathlib import Path

from .errors import ConfigError

SCOPE = 'mmcae::'  # before the path of a packaged config in `_base_`, as OpenMMLab's libraries write it
PACKAGE = Path(__file__).resolve().parents[1]


def shipped(name):
    """A folder that comes with mmcae, which is absent only where the package was taken apart."""
    places = (PACKAGE / '.mim' / name, PACKAGE.parent / name)
    return next((place.resolve() for place in places if place.is_dir()), places[0])


CONFIGS, TOOLS = shipped('configs'), shipped('tools')


@functools.cache
def packaged_configs():
    """The configs that can be run, by short name in alphabetical order, such as 'cae/cae_vit-tiny-p16_32xb64-amp-coslr-300e_in1k'.

    Returns:
        dict[str, Path]: Name -> file.
    """
    files = sorted(path for path in CONFIGS.glob('*/*.py') if path.parent.name != '_base_')
    return {f'{path.parent.name}/{path.stem}': path for path in files}


def find_config(name):
    """The file that a name means: a file, or one of the packaged configs, with or without `.py`.

    Of a packaged config the name alone is enough, `cae_vit-small_folder`, and a folder beside its own does no harm,
    `cae/cae_vit-small_folder`, as long as only one config has that name.

    Args:
        name (str | Path): As a person has written it.

    Returns:
        Path: An existing file.

    Raises:
        ConfigError: There is no such config; with the places that were looked at, and the nearest names.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        raise ConfigError(f'There is no config {path}: it is a folder, name a file in it')
    for file in (path, path.with_name(f'{path.name}.py')):
        if file.is_file():
            return file
    known, short = packaged_configs(), str(name).removesuffix('.py').removeprefix('./').removeprefix('configs/')
    folder, _, stem = short.rpartition('/')
    if short in known:
        return known[short]
    same = [other for other in known if other.rpartition('/')[2] == stem]
    if len(same) == 1 and folder in ('', *(other.rpartition('/')[0] for other in known)):
        announce(str(name), known[same[0]])
        return known[same[0]]
    raise ConfigError(
        f'There is no config {name}, neither in {path.absolute().parent} nor among those of mmcae, {CONFIGS}{nearest_configs(path, stem)}'
    )


@functools.cache  # once, however often the name is looked up
def announce(name, file):
    """Say which config a name in another folder means."""
    if os.environ.get('RANK', '0') == '0':
        print(f'{name} is {file}', file=sys.stderr, flush=True)


def nearest_configs(path, stem):
    """The end of a message about a config that does not exist: the most similar ones, beside it and among the packaged ones."""
    beside = path.parent.glob('*.py') if path.parent.is_dir() else ()
    found = {name.rpartition('/')[2]: name for name in packaged_configs()} | {file.stem: str(file) for file in beside}
    matches = difflib.get_close_matches(stem, found, n=3)
    return f'; did you mean {" or ".join(repr(found[match]) for match in matches)}?' if matches else ''


def packaged_base(base):
    """The file of a base whose name begins with `mmcae::`; other names as they are."""
    return str(CONFIGS / base.removeprefix(SCOPE)) if base.startswith(SCOPE) else base


def standalone(path):
    """The text of a packaged config that holds in any folder: its bases are named as `mmcae::FOLDER/NAME.py`.

    Args:
        path (Path): The config.

    Returns:
        str: Comments and all else unchanged.
    """
    text, folder = Path(path).read_text(encoding='utf-8'), CONFIGS
    if not Path(path).resolve().is_relative_to(folder):
        return text
    lines = text.splitlines(keepends=True)
    bases = [node.value for node in ast.parse(text).body if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == '_base_']
    names = [node for base in bases for node in ast.walk(base) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    for node in sorted(names, key=lambda node: (node.lineno, node.col_offset), reverse=True):
        base = (Path(path).resolve().parent / node.value).resolve().relative_to(folder)
        line = lines[node.lineno - 1].encode()
        new = line[: node.col_offset] + repr(f'{SCOPE}{base.as_posix()}').encode() + line[node.end_col_offset :]
        lines[node.lineno - 1] = new.decode()
    return ''.join(lines)
