"""Reading checkpoint files without ever running code from them, and writing plain tensors."""

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..utils.errors import CheckpointError
from ..utils.files import atomic_file
from ..utils.pieces import first_piece, read_pieces

StateDict = dict[str, Tensor]

# What wrappers of distributed training, averaging, compilation and activation checkpointing put into names.
WRAPPERS = re.compile(r'^(?:module\.)+|(?:^|(?<=\.))(?:_fsdp_wrapped_module|_orig_mod|_checkpoint_wrapped_module)\.')


def read_checkpoint(path: str | Path, mmap: bool = False) -> dict:
    """Everything a checkpoint file holds, without ever running code from it.

    Args:
        path: A file written by torch.save (mmengine's, the authors', ...), or a .safetensors file. Or a folder of pieces that FSDP or
            DeepSpeed has written: its tensors are put together, and the optimizer's state is left out.
        mmap: Read the tensors of torch.save's format when they are used, to look at something else in a large file.

    Returns:
        The file's content, on the CPU.

    Raises:
        CheckpointError: There is no such file, it is damaged, or it holds objects other than tensors and plain data.
    """
    path = Path(path)
    if first_piece(path) is not None:
        return read_pieces(path, read_checkpoint)
    if not path.is_file():
        near = sorted(str(p) for p in path.parent.glob('*.pth'))[:5] if path.parent.is_dir() else []
        raise CheckpointError(f'There is no checkpoint {path}' + (f'; beside it are {", ".join(near)}' if near else ''))
    if path.suffix == '.safetensors':
        return read_safetensors(path)
    try:
        # The authors put their parsed arguments into the file: a Namespace is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location='cpu', weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        # Of torch's text the name alone: the rest is advice to switch its protection off.
        name = re.search(r'GLOBAL ([\w.]+)', str(error))
        reason = name[1] if name else first_sentence(str(error).split('error: ')[-1])
        raise CheckpointError(
            f'{path} was refused ({reason}): only tensors and plain data are read, because loading anything else can run code. '
            "Convert OpenAI's tokenizer with tools/model_converters/convert.py; save the state_dict alone of a module of your own"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise damaged(path, error) from error


def read_safetensors(path: Path) -> StateDict:
    """The tensors of a .safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> CheckpointError:
    """What to raise for a file that cannot be read as what its name says."""
    return CheckpointError(f'{path} is damaged or no checkpoint ({type(error).__name__}: {first_sentence(str(error))})')


def first_sentence(text: str) -> str:
    """Of a library's message what is wrong; what follows is advice that does not apply here."""
    return text.strip().split('\n')[0].split('. ')[0].rstrip('.') or 'no reason given'


def write_state_dict(path: str | Path, state: StateDict):
    """Write tensors and nothing else, as .safetensors or, for .pth and .pt, by torch.save; an interrupted write leaves no file.

    Raises:
        CheckpointError: The suffix is none of these.
    """
    path = Path(path)
    if path.suffix not in ('.pth', '.pt', '.safetensors'):
        raise CheckpointError(f'{path}: the name must end in .pth, .pt or .safetensors, which decides the format')
    with atomic_file(path) as file:
        if path.suffix == '.safetensors':
            from safetensors.torch import save

            # Each tensor on its own, since the format knows no shared memory.
            file.write(save({key: value.clone().contiguous() for key, value in state.items()}, metadata=dict(format='pt')))
        else:
            torch.save(state, file)


def state_dict_of(content: Mapping) -> StateDict:
    """The state dict inside a checkpoint's content, with the names that wrappers add taken off."""
    for container in ('state_dict', 'model', 'module'):
        if isinstance(content.get(container), Mapping):
            content = content[container]
            break
    return {WRAPPERS.sub('', key): value for key, value in content.items() if isinstance(value, Tensor)}


def load_state(source: str | Path | Mapping, origin: str | Path | None = None) -> StateDict:
    """The state dict of a file, or of a mapping that is a checkpoint's content or already a state dict; `origin` names it in messages."""
    content = source if isinstance(source, Mapping) else read_checkpoint(source)
    if not isinstance(content, Mapping):
        raise CheckpointError(f'{source} holds a {type(content).__name__}, not a checkpoint')
    state = state_dict_of(content)
    if not state:
        raise CheckpointError(f'{origin or name_of(source)} holds no tensors: is it a checkpoint?')
    return state


def name_of(source) -> str:
    """What to call a source of weights in a message."""
    return 'the given state dict' if isinstance(source, Mapping) else str(source)
