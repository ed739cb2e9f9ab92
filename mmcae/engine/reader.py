"""mmengine reads and writes checkpoints by our reader, which runs no code: registered in mmengine's own registry of loaders, on request."""

import logging
import os
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from mmengine import fileio
from mmengine.dist import barrier, get_local_rank
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import get_torchvision_models

from ..checkpoints import read_checkpoint
from ..checkpoints.pickle_names import HISTORY_BUFFER, Record
from ..utils.errors import CheckpointError

STORAGE_SCHEMES = (r'(\S+\:)?s3://', r'(\S+\:)?petrel://')
# Names of checkpoints on hosts that are gone, and of services with a client of their own that unpickles.
REFUSED_SCHEMES = ('open-mmlab://', 'openmmlab://', 'mmcls://', 'mmdet://', 'pavi://')


def register():
    """Have mmengine (Runner, FlexibleRunner, `init_cfg=dict(type='Pretrained')` of any model) read checkpoints by our reader.

    This replaces mmengine's loaders through `CheckpointLoader.register_scheme`, for the whole process; tools and :class:`mmcae.Runner` do
    so when they start, importing mmcae does not.
    """
    CheckpointLoader.register_scheme('', load_local, force=True)
    CheckpointLoader.register_scheme(('http://', 'https://'), load_url, force=True)
    CheckpointLoader.register_scheme(('torchvision://', 'modelzoo://'), load_torchvision, force=True)
    CheckpointLoader.register_scheme(STORAGE_SCHEMES, load_from_storage, force=True)
    CheckpointLoader.register_scheme(REFUSED_SCHEMES, refuse_scheme, force=True)


def load_local(filename: str, map_location=None) -> dict:
    """A checkpoint file. Tensors come to the CPU whatever `map_location` says: mmengine copies them to where model and optimizer are."""
    return for_mmengine(read_checkpoint(filename), filename)


def load_url(filename: str, map_location=None) -> dict:
    """A checkpoint of a web server, kept in torch's folder of downloads; the first process of each machine fetches it."""
    folder = os.path.join(torch.hub.get_dir(), 'checkpoints')
    path = os.path.join(folder, os.path.basename(filename.split('?')[0]))
    if get_local_rank() == 0 and not os.path.exists(path):
        os.makedirs(folder, exist_ok=True)
        torch.hub.download_url_to_file(filename, path)
    barrier()
    return load_local(path)


def load_torchvision(filename: str, map_location=None) -> dict:
    """A model of torchvision by its name."""
    name, urls = filename.split('://')[1], get_torchvision_models()
    if name not in urls:
        raise CheckpointError(f'{filename}: torchvision has no weights of this name')
    return load_url(urls[name])


def load_from_storage(filename: str, map_location=None) -> dict:
    """A checkpoint in object storage, by mmengine's file backend for it."""
    with fileio.get_local_path(filename) as path:
        return load_local(path)


def refuse_scheme(filename: str, map_location=None):
    """A name that stands for a file on a host that is gone."""
    raise CheckpointError(f'{filename}: checkpoints of this scheme cannot be fetched. Download the file and give its path')


# ---------------------------------------------------------------- what mmengine expects in a checkpoint


def for_mmengine(content: Any, origin: str) -> Any:
    """A checkpoint's content with its logs as mmengine resumes them, and without the config text that it would execute on resuming."""
    if not isinstance(content, dict):
        return content
    meta = content.get('meta')
    if isinstance(meta, dict) and meta.pop('config', None) is not None:
        print_log(f'{origin}: the config text in it is ignored, because reading it means to execute it', 'current', logging.WARNING)
    hub = content.get('message_hub')
    if isinstance(hub, dict) and isinstance(hub.get('log_scalars'), dict):
        scalars = {name: history_of(value) for name, value in hub['log_scalars'].items()}
        content['message_hub'] = {**hub, 'log_scalars': {name: value for name, value in scalars.items() if value is not None}}
    return content


def history_of(value: Any) -> HistoryBuffer | None:
    """A history of a logged number, from our form of it or from mmengine's; None for anything else."""
    if isinstance(value, Record) and value.name == HISTORY_BUFFER:
        names = ('_log_history', '_count_history', 'max_length')
        values = [value.attributes.get(name) for name in names]
    elif isinstance(value, Mapping):
        values = [value.get(name) for name in ('history', 'counts', 'max_length')]
    else:
        return None
    history, counts, length = values
    if any(not hasattr(part, '__len__') for part in (history, counts)) or len(history) != len(counts) or type(length) is not int:
        return None
    history, counts = (part.numpy() if isinstance(part, torch.Tensor) else part for part in (history, counts))
    return HistoryBuffer(history, counts, length)


def plain_history(history: HistoryBuffer) -> dict:
    """A history of a logged number as tensors: float64 (n,) and its counts int64 (n,)."""
    values, counts = history.data
    return dict(
        history=torch.as_tensor(values, dtype=torch.float64),
        counts=torch.as_tensor(counts, dtype=torch.int64),
        max_length=history.max_length,
    )


def make_plain(checkpoint: dict):
    """Replace what mmengine puts beside the weights of a checkpoint by plain data, which `torch.load(weights_only=True)` reads anywhere."""
    for part in ('meta', 'message_hub', 'param_schedulers'):
        if part in checkpoint:
            checkpoint[part] = plain(checkpoint[part])


def plain(value: Any) -> Any:
    """Histories as tensors, numbers and arrays of numpy as Python's, paths as texts, in containers of any depth."""
    if isinstance(value, HistoryBuffer):
        return plain_history(value)
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value)) if type(value) in (list, tuple) else value
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return str(value) if isinstance(value, PurePath) else value
