"""The tensors of modules that were stored whole, without running code from the file: OpenAI's DALL-E (pickles) and CLIP (TorchScript)."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from ..utils.errors import CheckpointError
from .pickle_names import Record
from .reading import StateDict, read_checkpoint

# Modules of DALL-E's package and of torch, and the classes of a TorchScript archive.
MODULES = ('dall_e.', 'torch.nn.modules.', '__torch__.')


def read_module(path: str | Path) -> StateDict:
    """The state dict of a module that was stored whole, such as OpenAI's `encoder.pkl`, `decoder.pkl` and `ViT-B-16.pt`.

    Args:
        path: A file written by `torch.save(module, path)` or `torch.jit.save`.

    Returns:
        What `module.state_dict()` would give, on the CPU: names such as `blocks.group_1.block_1.res_path.conv_1.w`.

    Raises:
        CheckpointError: There is no such file; it is damaged or of another kind; or it names a class or function other than modules of
            `dall_e` and `torch.nn` and TorchScript's own. Nothing of the file has run then.
    """
    content = read_checkpoint(path, records=MODULES)
    if not isinstance(content, Record):
        raise CheckpointError(f'{path} holds a {type(content).__name__}, not a module that was stored whole')
    state = dict(tensors(content, '', str(path)))
    if not state:
        raise CheckpointError(f'{path} holds a module without tensors ({content.name})')
    return state


def tensors(module: Record, prefix: str, path: str, above: tuple[Record, ...] = ()) -> Iterator[tuple[str, Tensor]]:
    """Names and values of a recorded module's parameters and buffers, those of its children after its own."""
    if any(module is other for other in above):
        raise CheckpointError(f'{path} holds a module that contains itself, at {prefix or "its top"}')
    own = module.attributes
    groups = [own[name] for name in ('_parameters', '_buffers', '_modules') if name in own]
    if module.args or not all(isinstance(group, Mapping) for group in groups) or 0 < len(groups) < 3:
        raise CheckpointError(f'{path} holds no module with parameters, buffers and children at {prefix or "its top"}')
    parts = {name: value for group in groups or [own] for name, value in group.items() if isinstance(name, str)}
    for name, value in parts.items():
        if isinstance(value, Tensor):
            yield prefix + name, value
    for name, value in parts.items():
        if isinstance(value, Record):
            yield from tensors(value, f'{prefix}{name}.', path, (*above, module))
