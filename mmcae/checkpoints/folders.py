"""Folders of released models: config.json, the weights in one file or in several, and how images are prepared."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..utils.errors import CheckpointError

WEIGHTS = ('model.safetensors', 'pytorch_model.bin', 'open_clip_model.safetensors')
INDEXES = ('model.safetensors.index.json', 'pytorch_model.bin.index.json')
PIECE = re.compile(r'-\d{5}-of-(\d{5})\.(safetensors|bin)$')
VARIANT = re.compile(r'(?:model|pytorch_model|open_clip_model)(?:\.\w+)?\.(?:safetensors|bin)')  # such as model.fp16.safetensors
CONFIG, PREPROCESSOR = 'config.json', 'preprocessor_config.json'
PROCESSOR = 'processor_config.json'  # of images and texts, as version 5 of transformers writes it in the other's place


def is_model_folder(path: Path) -> bool:
    """Whether it is a folder with weights under the names that Hugging Face and timm give them."""
    return path.is_dir() and any((path / name).is_file() for name in (*WEIGHTS, *INDEXES))


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
    index = next(path / name for name in INDEXES if (path / name).is_file())
    listed = read_json(index).get('weight_map')
    if not isinstance(listed, Mapping) or any(Path(str(name)).name != name for name in listed.values()):
        raise CheckpointError(f'{index} lists no files of weights')
    state = {}
    for name in sorted(set(listed.values())):
        content = read(path / name)
        state |= content.get('state_dict', content)
    missing = [key for key in listed if key not in state]
    if missing:
        raise CheckpointError(f'{path} lacks {len(missing)} tensors that {index.name} lists, the first is {missing[0]}')
    return state


def no_checkpoint(path: Path) -> CheckpointError:
    """What to raise where nothing can be read: the path is a folder without weights under a known name, or is not there."""
    folder = path if path.is_dir() else path.parent
    near = sorted(str(file) for file in folder.glob('*') if file.suffix in ('.pth', '.pt', '.bin', '.safetensors'))[:5]
    beside = f'; {"in it" if folder == path else "beside it"} are {", ".join(near)}' if near else ''
    if not path.is_dir():
        return CheckpointError(f'There is no checkpoint {path}{beside}')
    known = ', '.join((*WEIGHTS, *INDEXES))
    return CheckpointError(f'{path} is a folder without {known}, or the pieces of a training: name the file of weights{beside}')


def refuse_pieces(path: Path):
    """Stop at one of several files of a released model, which holds a part of its tensors.

    Raises:
        CheckpointError: With the folder to name.
    """
    piece = PIECE.search(path.name)
    if piece and int(piece[1]) > 1:
        raise CheckpointError(f'{path} is one of the {int(piece[1])} files of a model: name the folder, {path.parent}')


def config_of(source: Any) -> Mapping:
    """What config.json says of a folder, or of a file in one: empty where there is none, `preprocessor` with the other file's content."""
    if not isinstance(source, str | Path):
        return {}
    path = Path(source).expanduser()
    if path.is_file() and not VARIANT.fullmatch(path.name) and path.name not in INDEXES:
        return {}  # a file of another kind, which only lies there
    folder = path if path.is_dir() else path.parent
    if not (folder / CONFIG).is_file():
        return {}
    config = dict(read_json(folder / CONFIG))
    if (folder / PREPROCESSOR).is_file():
        config['preprocessor'] = read_json(folder / PREPROCESSOR)
    elif (folder / PROCESSOR).is_file() and isinstance(whole := read_json(folder / PROCESSOR).get('image_processor'), Mapping):
        config['preprocessor'] = whole
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
