"""Stop with one clear message where the data a config names is not there, before anything is built."""

import os

from mmengine.fileio import exists, join_path
from mmengine.utils import is_abs

from ..utils import remote
from ..utils.errors import ConfigError, DataError
from ..utils.files import patiently
from ..utils.text_files import read_pickle, read_yaml

READERS = {'.yaml': read_yaml, '.yml': read_yaml, '.pkl': read_pickle, '.pickle': read_pickle}


def check_data(cfg, splits=('train', 'val', 'test')):
    """Check that all folders and annotation files that a config reads exist, and that those in YAML or pickle are data alone.

    Looks through ``{split}_dataloader.dataset`` of the config, wrapped data sets included. The message ends with the config's
    ``data_preparation``, a sentence that says how to get the data; every file in ``configs/_base_/datasets/`` has one.

    Args:
        cfg (mmengine.Config | dict): The full config.
        splits (Sequence[str]): Which dataloaders will be used. Defaults to all three.

    Raises:
        DataError: Names the first path that is missing and how to prepare it, the first file that would run code when it is loaded, or what
            is no path.
    """
    for split in splits:
        loader = cfg.get(f'{split}_dataloader') or {}
        for path in _paths(loader.get('dataset') or {}):
            if not there(path):
                hint = cfg.get('data_preparation') or 'Set data_root in the config to where the data is.'
                raise DataError(f'{path} does not exist, but {split}_dataloader reads it. {hint}')
            read = READERS.get(os.path.splitext(path)[1])
            if read and os.path.isfile(path):
                read(path)


def there(path):
    """Whether a file or a folder exists, also in a store that fsspec or a client of mmengine's reads."""
    if not remote.is_remote(path):
        return exists(path)
    try:
        return patiently(lambda: remote.exists(path), path)
    except ConfigError:  # fsspec lacks a package
        try:
            return exists(path)
        except (ImportError, KeyError):
            pass  # mmengine has no client either
        raise


def _paths(dataset):
    """Every path that a data set's config names, data_root first."""
    for inner in [dataset.get('dataset'), *(dataset.get('datasets') or [])]:
        if inner:
            yield from _paths(inner)
    root = dataset.get('data_root') or ''
    joined = remote.join if isinstance(root, str) and remote.is_remote(root) else join_path
    prefixes = dataset.get('data_prefix') or ''
    parts = [dataset.get('ann_file') or '', *(prefixes.values() if isinstance(prefixes, dict) else [prefixes])]
    for part in (root, *parts):
        if not isinstance(part, str):
            raise DataError(f'{part!r} is set where data_root, data_prefix or ann_file of a data set names a file or a folder')
    if root.startswith(('http://', 'https://')):  # a web server knows files, and its folders perhaps not
        parts = parts[:1]
    elif root:
        yield root
    yield from (part if is_abs(part) or not root else joined(root, part) for part in parts if part)
