"""The relative position bias of BEiT, for any patch grid."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .open_sizes import is_open, is_recorded

# Beyond the offsets between patches the table has one row each for cls -> patch, patch -> cls and cls -> cls.
CLS_ROWS = 3


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


def table_length(grid: tuple[int, int]) -> int:
    """Rows of the table for a grid of (h, w) patches."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + CLS_ROWS


def resize_bias_table(table: Tensor, source: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Bicubic resizing of a table (rows, heads) from one patch grid to another; the rows that concern cls stay."""
    if not is_open(*grid) and tuple(source) == tuple(grid):
        return table  # which resizing would leave as it is
    offsets, of_cls = table[:-CLS_ROWS], table[-CLS_ROWS:]
    maps = offsets.T.reshape(1, -1, 2 * source[0] - 1, 2 * source[1] - 1)
    maps = F.interpolate(maps, size=(2 * grid[0] - 1, 2 * grid[1] - 1), mode='bicubic', align_corners=False)
    return torch.cat((maps.flatten(2)[0].T, of_cls))


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
    first = table_length((height, width)) - CLS_ROWS
    index[0, :] = first
    index[:, 0] = first + 1
    index[0, 0] = first + 2
    return index.to(device)
