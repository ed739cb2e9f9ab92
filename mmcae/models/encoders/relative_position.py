"""The relative position bias of BEiT, for any patch grid."""

import torch
from torch import Tensor

from ...checkpoints.tables import CLS_ROWS, bias_table_length, resize_bias_table


def relative_position_bias(table: Tensor, source: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """The attention bias for a grid of patches behind a cls token.

    Args:
        table: (rows, heads), one row per offset between two patches of the `source` grid, then the three that concern cls.
        source: (h, w) of the patch grid the table was made for.
        grid: (h, w) of the patch grid at hand; where it is another one the table is resized.

    Returns:
        (heads, 1 + h * w, 1 + h * w) in the table's dtype.
    """
    table = resize_bias_table(table, source, grid)
    index = relative_position_index(*grid, table.device)
    return table[index.flatten()].reshape(*index.shape, -1).permute(2, 0, 1)


def relative_position_index(height: int, width: int, device: torch.device) -> Tensor:
    """Which row of the table applies from token to token: int64 (1 + h * w, 1 + h * w), cls first.

    As timm's `gen_relative_position_index`, but made on the device, where nothing has to be copied or kept: for images of 1024 pixels the
    index of one grid takes 134 MB.
    """
    y, x = torch.arange(height, device=device), torch.arange(width, device=device)
    down = (y[:, None] - y + height - 1) * (2 * width - 1)
    right = x[:, None] - x + width - 1
    patches, first = height * width, bias_table_length((height, width)) - CLS_ROWS
    index = torch.empty(patches + 1, patches + 1, dtype=torch.int64, device=device)
    index[1:, 1:] = (down[:, None, :, None] + right[:, None]).reshape(patches, patches)
    index[0] = first
    index[:, 0] = first + 1
    index[0, 0] = first + 2
    return index
