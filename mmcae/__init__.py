"""mmcae: pretrain vision transformers with the Context Autoencoder (arXiv 2202.03026) and carry them on, on the OpenMMLab stack.

Importing it makes every `mmcae.X` type buildable from any OpenMMLab config, and does nothing else. The registries import what is asked for.
"""

from importlib.util import find_spec

from .version import __version__

# Without mmengine there is nothing to register with, and `python -m mmcae.commands.doctor` has to run and say so.
if find_spec('mmengine'):
    from . import registry  # noqa: F401

__all__ = ['__version__']
