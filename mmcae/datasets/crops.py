"""Crops of any size on their way from a loader worker to the device that makes views of them.

A sample is two arrays in place of its views: the pixels of its crop, one after another, and a row of numbers (:class:`CropRow`) that says
what is to be made of them. A batch has the pixels of all its crops in one array, and the rows in a table.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

import torch
from mmengine.dataset import default_collate
from torch import Tensor
from torch.utils.data import get_worker_info

from ..registry import FUNCTIONS

FILTERS = ('bilinear', 'bicubic', 'lanczos')
JITTERS = ('nothing', 'brightness', 'contrast', 'saturation')


@dataclass
class CropRow:
    """One row of the table, all numbers.

    Args:
        height, width, channels: Of the crop, whose pixels lie in the order (height, width, channels).
        mirrored: 1 if columns are to be reversed.
        view_height, view_width, view_filter: Size in pixels and number in `FILTERS` of the first view.
        second_height, second_width, second_filter: The same of the second view; 0, 0 without one.
        grey: Mean of the whole image in grey, to which the contrast is relative.
        jitter_1, jitter_2, jitter_3: Changes of colour in their order, numbers in `JITTERS`.
        factor_1, factor_2, factor_3: Of these changes; 1 changes nothing.
    """

    height: int
    width: int
    channels: int
    mirrored: int
    view_height: int
    view_width: int
    view_filter: int
    second_height: int = 0
    second_width: int = 0
    second_filter: int = 0
    grey: float = 0.0
    jitter_1: int = 0
    jitter_2: int = 0
    jitter_3: int = 0
    factor_1: float = 1.0
    factor_2: float = 1.0
    factor_3: float = 1.0

    def tensor(self) -> Tensor:
        return torch.tensor(astuple(self), dtype=torch.float64)


COLUMNS = {field.name: number for number, field in enumerate(fields(CropRow))}


def is_crop(inputs) -> bool:
    """Whether the inputs of a sample or a batch are crops and not views."""
    return isinstance(inputs, list | tuple) and len(inputs) == 2 and inputs[0].ndim == 1


@FUNCTIONS.register_module()
def collate_views(samples: Sequence[dict]) -> dict:
    """mmengine's `default_collate`, which also collates crops that :class:`TwoViewCrop` leaves to the device (`backend='device'`).

    Args:
        samples: What a pipeline that ends in PackInputs gives.

    Returns:
        `inputs` and `data_samples`; of crops, `inputs` are the pixels of all in one tensor, and the table (B, columns) in float64.
    """
    if not is_crop(samples[0]['inputs']):
        return default_collate(samples)
    pixels, rows = zip(*(sample['inputs'] for sample in samples), strict=True)
    out = None
    if get_worker_info() is not None:  # written straight into the memory that processes share, as torch's default_collate does
        length = sum(len(part) for part in pixels)
        widest = max(pixels, key=Tensor.element_size)
        out = widest.new(widest._typed_storage()._new_shared(length, device='cpu'))
    return dict(inputs=[torch.cat(pixels, out=out), torch.stack(rows)], data_samples=[sample['data_samples'] for sample in samples])
