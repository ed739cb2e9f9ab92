"""The golden files: tensors that the authors' own code computed. They lie outside of this repository, and not everyone has them."""

import json
import os
from pathlib import Path

import torch

from .examples import example

FOLDER = Path(os.environ.get('MMCAE_GOLDEN', Path(__file__).parents[3] / 'shared' / 'golden'))


def present(*names):
    """Those of some golden files that are there."""
    return [name for name in names if (FOLDER / name).is_file()]


def load(name):
    """The tensors of a golden file (a name with a suffix), or of an example that the reference computes (any other name)."""
    if name.endswith('.pt'):
        return torch.load(FOLDER / name, map_location='cpu', weights_only=True)
    if name.endswith('.json'):
        return json.loads((FOLDER / name).read_text())
    return example(name)
