"""The relative position bias of BEiT, for any patch grid."""

from functools import lru_cache

import torch
from torch import Tensor

from ...checkpoints.tables import CLS_ROWS, bias_table_length, resize_bias_table
from ...utils.open_sizes import is_recorded


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
    make_index = relative_position_index.__wrapped__ if is_recorded() else relative_position_index
    index = make_index(*grid, table.device)
    return table[index.flatten()].reshape(*index.shape, -1).permute(2, 0, 1)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # the result is kept, and a training may be next
def relative_position_index(height: int, width: int, device: torch.device) -> Tensor:
    """Which row of the table applies from token to token: int64 (1 + h * w, 1 + h * w), cls first."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    rows, columns = rows.flatten(), columns.flatten()
    down = rows[:, None] - rows[None] + height - 1
    right = columns[:, None] - columns[None] + width - 1
    patches = height * width
    index = torch.empty(patches + 1, patches + 1, dtype=torch.int64)
    index[1:, 1:] = down * (2 * width - 1) + right
    first = bias_table_length((height, width)) - CLS_ROWS
    index[0, :] = first
    index[:, 0] = first + 1
    index[0, 0] = first + 2
    return index.to(device)
