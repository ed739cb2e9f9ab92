"""Tables that are made for a grid of patches: positions and relative position biases. Their resizing, and the grid a table was made for."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.errors import CheckpointError, ConfigError
from ..utils.open_sizes import is_open, resize_to_open_grid

# Beyond the offsets between patches a bias table has one row each for cls -> patch, patch -> cls and cls -> cls.
CLS_ROWS = 3
# Sin-cos tables are recognised also after they were stored in half precision.
SINCOS_TOLERANCE = 1e-2


def sincos_position_table(grid: tuple[int, int], dim: int) -> Tensor:
    """The fixed position table of MoCo v3 and MAE for a patch grid in raster order.

    The first half of each row encodes the patch's row, the second half its column, each as sines followed by cosines.

    Args:
        grid: (h, w) in patches, square or not.
        dim: Width of the table, a multiple of 4.

    Returns:
        float32 tensor of shape (1, h * w, dim), values in [-1, 1].

    Raises:
        ConfigError: Another width.
    """
    if dim % 4:
        raise ConfigError(f'A sin-cos position table needs a width that is a multiple of 4, got {dim}: choose other embed_dims.')
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in grid), indexing='ij')
    omega = torch.arange(dim // 4, dtype=torch.float32) / (dim // 4)
    omega = 1.0 / 10000**omega
    waves = [position.flatten()[:, None] * omega[None] for position in (rows, columns)]
    return torch.cat([half for wave in waves for half in (wave.sin(), wave.cos())], dim=1)[None]


def sincos_grid(table: Tensor) -> tuple[int, int] | None:
    """The grid that a sin-cos table was made for.

    Args:
        table: (1, n, C) without cls, whose first half encodes rows (CAE, MoCo v3) or columns (MAE's own code).

    Returns:
        (h, w), or None for a table of another kind, such as a learned one, or one that was resized.
    """
    count, dim = table.shape[1:]
    if dim % 4 or table.is_meta:
        return None
    table = table.float().cpu()
    for height in range(1, count + 1):
        if count % height == 0:
            wanted = sincos_position_table((height, count // height), dim)
            for order in (wanted, torch.cat(wanted.chunk(2, dim=2)[::-1], dim=2)):
                if (order - table).abs().max() < SINCOS_TOLERANCE:
                    return height, count // height
    return None


def square_grid(count: int) -> tuple[int, int] | None:
    """The square grid of so many cells, or None where there is none."""
    side = math.isqrt(count)
    return (side, side) if side * side == count else None


def grid_of_table(table: Tensor, likely: tuple[int, int]) -> tuple[int, int] | None:
    """The grid of a position table (1, n, C) without cls of which nothing else is known.

    Args:
        table: A sin-cos table tells its grid.
        likely: What a learned table of as many cells was made for; learned tables of other lengths are taken to be square.

    Returns:
        (h, w), or None for a learned table of another length that is not square.
    """
    return sincos_grid(table) or (likely if table.shape[1] == likely[0] * likely[1] else square_grid(table.shape[1]))


def unknown_grid(origin: str, table: Tensor) -> CheckpointError:
    """What to raise where the grid of a position table (1, patches, C) must be given."""
    return CheckpointError(
        f'{origin} was made for {table.shape[1]} patches, which are no square, and nothing tells their grid: give '
        'load_encoder img_size=(height, width) of its training, or mmcae export --img-size HEIGHT WIDTH'
    )


def cannot_resize(name: str, length: int) -> CheckpointError:
    """What to raise for a table that cannot be resized."""
    return CheckpointError(
        f'{name} in the checkpoint was made for a grid of {length} cells that is not square, and nothing tells which: '
        'give the model the img_size of the pretraining'
    )


def resize_position_table(table: Tensor, source: tuple[int, int], grid: tuple[int, int], by_scale: bool = False) -> Tensor:
    """Bicubic resizing of a position table, as the paper's downstream protocols do it.

    Without antialiasing, which timm's `resample_abs_pos_embed` has, so that its numbers are others.

    Args:
        table: (1, h * w, C) in raster order, without the cls token.
        source: (h, w) of the table.
        grid: (h, w) wanted. What a tracer leaves open is sampled by scale.
        by_scale: Let the scale factor `(wanted + 0.1) / source` place the samples (what the detection protocol does at every
            forward), not the two sizes (what is done once, when a checkpoint is loaded). The values differ slightly.

    Returns:
        (1, grid[0] * grid[1], C); the table itself where the grids are equal.
    """
    if is_open(*grid):
        return resize_to_open_grid(table, source, grid)
    if tuple(source) == tuple(grid):
        return table
    maps = table.reshape(1, *source, -1).permute(0, 3, 1, 2)
    if by_scale:
        scale = tuple((wanted + 0.1) / given for wanted, given in zip(grid, source, strict=True))
        maps = F.interpolate(maps, scale_factor=scale, mode='bicubic', align_corners=False)
    else:
        maps = F.interpolate(maps, size=tuple(grid), mode='bicubic', align_corners=False)
    return maps.permute(0, 2, 3, 1).flatten(1, 2)


def bias_table_length(grid: tuple[int, int]) -> int:
    """Rows of the relative position bias table for a grid of (h, w) patches."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + CLS_ROWS


def bias_grid(table: Tensor, image_grid: tuple[int, int]) -> tuple[int, int] | None:
    """The grid that a bias table (rows, heads) was made for: that of the image, a square window, or None for no known one."""
    if len(table) == bias_table_length(image_grid):
        return image_grid
    offsets = square_grid(len(table) - CLS_ROWS)
    return ((offsets[0] + 1) // 2, (offsets[0] + 1) // 2) if offsets else None


def resize_bias_table(table: Tensor, source: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Bicubic resizing of a table (rows, heads) from one patch grid to another; the rows that concern cls stay.

    As the authors do it, evenly; timm's `resize_rel_pos_bias_table` spaces its samples geometrically.
    """
    if not is_open(*grid) and tuple(source) == tuple(grid):
        return table  # which resizing would leave as it is
    offsets, of_cls = table[:-CLS_ROWS], table[-CLS_ROWS:]
    maps = offsets.T.reshape(1, -1, 2 * source[0] - 1, 2 * source[1] - 1)
    maps = F.interpolate(maps, size=(2 * grid[0] - 1, 2 * grid[1] - 1), mode='bicubic', align_corners=False)
    return torch.cat((maps.flatten(2)[0].T, of_cls))
