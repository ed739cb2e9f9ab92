"""mmcae: pretrain vision transformers with the Context Autoencoder (arXiv 2202.03026) and carry them on, on the OpenMMLab stack.

Importing it checks and repairs the environment (`mmcae.compat`) and makes every `mmcae.X` type buildable from any OpenMMLab config. It
does not import mmdet, mmseg or mmpretrain: a registry does so when it is first asked for something of theirs.
"""

import sys

from . import compat
from .version import __version__

# `python -m mmcae.utils.collect_env` has to run, above all, where something is missing.
if sys.orig_argv[1:3] != ['-m', 'mmcae.utils.collect_env']:
    compat.apply()
    from . import registry  # noqa: F401

__all__ = ['__version__']
