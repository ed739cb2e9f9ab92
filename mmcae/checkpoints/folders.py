"""Folders of released models: config.json, the weights in one file or in several, and how images are prepared."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..utils.errors import CheckpointError

WEIGHTS = ('model.safetensors', 'pytorch_model.bin', 'open_clip_model.safetensors')
INDEX = 'model.safetensors.index.json'
CONFIG, PREPROCESSOR = 'config.json', 'preprocessor_config.json'


def is_model_folder(path: Path) -> bool:
    """Whether it is a folder with weights under the names that Hugging Face and timm give them."""
    return path.is_dir() and any((path / name).is_file() for name in (*WEIGHTS, INDEX))


def read_model_folder(path: Path, read: Callable[[Path], Any]) -> Mapping:
    """The tensors in such a folder, be they in one file or in pieces.

    Args:
        path: The folder.
        read: Reads a file of weights.

    Raises:
        CheckpointError: The list of pieces is damaged, or names another file than those beside it.
    """
    whole = next((path / name for name in WEIGHTS if (path / name).is_file()), None)
    if whole is not None:
        return read(whole)
    listed = read_json(path / INDEX).get('weight_map')
    if not isinstance(listed, Mapping) or any(Path(str(name)).name != name for name in listed.values()):
        raise CheckpointError(f'{path / INDEX} lists no files of weights')
    state = {}
    for name in sorted(set(listed.values())):
        content = read(path / name)
        state |= content.get('state_dict', content)
    missing = [key for key in listed if key not in state]
    if missing:
        raise CheckpointError(f'{path} lacks {len(missing)} tensors that {INDEX} lists, the first is {missing[0]}')
    return state


def config_of(source: Any) -> Mapping:
    """What config.json says of a folder, or of a file in one: empty where there is none, `preprocessor` with the other file's content."""
    if not isinstance(source, str | Path):
        return {}
    path = Path(source).expanduser()
    if path.is_file() and path.name not in WEIGHTS:
        return {}  # a file of another kind, which only lies there
    folder = path if path.is_dir() else path.parent
    if not (folder / CONFIG).is_file():
        return {}
    config = dict(read_json(folder / CONFIG))
    if (folder / PREPROCESSOR).is_file():
        config['preprocessor'] = read_json(folder / PREPROCESSOR)
    return config


def read_json(path: Path) -> Mapping:
    """A JSON file with an object in it.

    Raises:
        CheckpointError: It is none.
    """
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise CheckpointError(f'{path} cannot be read as JSON: {str(error).splitlines()[0]}') from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f'{path} holds a {type(content).__name__}, not an object')
    return content
