"""The tensors of a module that was pickled whole, without running any code from the file.

OpenAI published the tokenizer of DALL-E as `encoder.pkl` and `decoder.pkl`: whole modules of a package `dall_e`, which unpickling would
import and instantiate. Here torch's own restricted unpickler reads them (`weights_only=True`), with an inert record in the place of every
object of `dall_e` and `torch.nn`; the tensors are then collected from the records. Any other class in the file refuses the file.
"""

import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from .errors import CheckpointError

MODULES = ('dall_e.', 'torch.nn.modules.')


class Record:
    """What takes the place of an object: it keeps the attributes as data. It has no methods that a file could call."""

    attributes: Mapping | None = None

    def __setstate__(self, state: Mapping):
        # The unpickler calls this with the attributes.
        self.attributes = state


def read_openai_pickle(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a pickled module, such as OpenAI's `encoder.pkl` and `decoder.pkl`.

    Args:
        path: A file written by `torch.save(module, path)` with torch 1.6 or later.

    Returns:
        What `module.state_dict()` would give, on the CPU: names such as `blocks.group_1.block_1.res_path.conv_1.w`.

    Raises:
        CheckpointError: There is no such file; it is damaged, was cut off while downloading, or is of another kind; or it names a class or
            function other than modules of `dall_e` and `torch.nn`, which the message names. Nothing of the file has run then.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f'There is no file {path} (looked for {path.absolute()})')
    try:
        with only_torch_allows():
            names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
            refused = sorted(name for name in names if not name.startswith(MODULES))
            if refused:
                raise CheckpointError(f'{path} was refused: it holds {", ".join(refused)}, and only tensors and modules of dall_e are read')
            with torch.serialization.safe_globals([(Record, name) for name in names]):
                content = torch.load(path, map_location='cpu', weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        # torch's own text ends in the reason, and begins with the advice to switch its protection off.
        reason = re.search(r'(?:.*error: )?(.*)', str(error).rstrip().split('\n\n')[0].splitlines()[-1])[1]
        raise CheckpointError(f'{path} was refused: {reason}') from error
    except (RuntimeError, ValueError, TypeError, EOFError, KeyError, IndexError, AttributeError) as error:
        raise CheckpointError(
            f'{path} is no module saved by torch.save, or it is damaged ({type(error).__name__}: {str(error).splitlines()[0]}). '
            f'{first_bytes(path)}'
        ) from error
    try:
        state = dict(tensors(content))
    except (RecursionError, AttributeError, TypeError, KeyError) as error:
        raise CheckpointError(f'{path} holds no pickled module with parameters, buffers and children ({error!r})') from error
    if not state:
        raise CheckpointError(f'{path} holds a {type(content).__name__} without tensors, not a pickled module')
    return state


@contextmanager
def only_torch_allows():
    """Suspend what programs have added to torch's list of harmless names; nothing of that belongs into these files."""
    added = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        yield
    finally:
        torch.serialization.add_safe_globals(added)


def tensors(module: Record, prefix: str = '') -> Iterator[tuple[str, Tensor]]:
    """Names and values of a recorded module's parameters and buffers, those of its children after its own."""
    own = module.attributes
    for name, value in [*own['_parameters'].items(), *own['_buffers'].items()]:
        if isinstance(value, Tensor):
            yield prefix + name, value.detach()
    for name, child in own['_modules'].items():
        if child is not None:
            yield from tensors(child, f'{prefix}{name}.')


def first_bytes(path: Path) -> str:
    """What a file that is no checkpoint looks like: most often a text that a download left in its place."""
    with path.open('rb') as file:
        text = file.read(60).decode('ascii', errors='replace')
    if text.startswith(('--', '<', 'http')):
        return f'It begins with {text.splitlines()[0]!r}: a log or a web page. (wget writes the file with -O, and its log with -o.)'
    return 'Download it again.'
