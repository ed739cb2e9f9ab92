"""mmcae: pretrain vision transformers with the Context Autoencoder (arXiv 2202.03026) and carry them on, on the OpenMMLab stack.

Importing it makes every `mmcae.X` type buildable from any OpenMMLab config, and does nothing else. The registries import what is asked for.

    import mmcae

    mmcae.train('cae/cae_vit-small_folder', data_root='images')          # what `mmcae train` does
    model, transform = mmcae.load_encoder('encoder.pth')                 # transform(image) -> tensor (C, H, W)
    features = mmcae.embed('encoder.pth', 'images', out='features.npz')  # what `mmcae embed` does
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import PurePath

from .version import __version__

# The command `mmcae` imports the registries once it knows that it has to work: --help and shell completion wait for nothing.
_command = PurePath(*sys.orig_argv[1:2]).stem == 'mmcae' or sys.orig_argv[1:3] == ['-m', 'mmcae']
# Without mmengine there is nothing to register with, and `mmcae doctor` has to run and say so.
if find_spec('mmengine') and not _command:
    from . import registry  # noqa: F401

__all__ = ['__version__', 'embed', 'load_encoder', 'train']


def __getattr__(name):
    """The functions for scripts and notebooks, whose libraries are imported with the first that is used."""
    if name in ('embed', 'load_encoder', 'train'):
        return getattr(import_module('.commands.functions', __name__), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
