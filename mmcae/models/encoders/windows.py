"""Attention within windows of patches, for large images: its cost grows with their area, not with the square of it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...utils.errors import ConfigError
from ...utils.open_sizes import is_open
from .attention import attend


def window_attention(q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int], window: int, bias: Tensor | None = None) -> Tensor:
    """Attention of patches to their window and the cls token, and of the cls token to everything.

    The windows tile the grid from its top left without overlap, as in ViTDet (arXiv 2203.16527, section 3); those that stick out at the
    right and the bottom are padded, and nothing attends to the padding. A window as large as the grid makes it ordinary attention.

    ViTDet has no cls token. Here it belongs to every window, because pretraining showed it to the encoder with every image: a window of
    14x14 patches and a cls token is just what an image of pretraining was.

    Args:
        q, k, v: Queries, keys and values (B, heads, 1 + h * w, d), those of the cls token first.
        grid: (h, w) of the patches.
        window: Height and width of the windows in patches.
        bias: Added to the scores, (heads, 1 + window ** 2, 1 + window ** 2), cls first; what it has for cls -> patch is the same for all.

    Returns:
        (B, heads, 1 + h * w, d).

    Raises:
        ConfigError: `torch.export` with open image sizes, whose reasoning about sizes does not follow windows.
    """
    if is_open(*grid) and not torch.jit.is_tracing():
        raise ConfigError('torch.export takes an encoder with windows at one image size: leave height and width out of dynamic_shapes')
    rows, columns = windows_along(grid, window)
    windows = split(q[:, :, 1:], grid, window)

    def for_each_window(x):  # (B, heads, n, d) -> (B * count, heads, n, d)
        return x[:, None].expand(-1, rows * columns, -1, -1, -1).flatten(0, 1)

    keys, values = (torch.cat((for_each_window(x[:, :, :1]), split(x[:, :, 1:], grid, window)), dim=2) for x in (k, v))
    mask, cls_mask = None, None
    if is_open(*grid) or grid[0] % window or grid[1] % window:
        mask = inside(*grid, window, q.device)[None].expand(q.shape[0], -1, -1, -1, -1).flatten(0, 1)
    if bias is not None:
        patch_bias = bias[:, 1:]
        mask = patch_bias if mask is None else torch.where(mask, patch_bias, -torch.inf)
        cls_mask = torch.cat((bias[:, :1, :1], bias[:, :1, 1:2].expand(-1, -1, grid[0] * grid[1])), dim=-1)
    patches = attend(windows, keys, values, mask)
    cls = attend(q[:, :, :1], k, v, cls_mask)
    return torch.cat((cls, merge(patches, grid, window)), dim=2)


def windows_along(grid: tuple[int, int], window: int) -> tuple[int, int]:
    """How many windows it takes for the rows and for the columns of a grid."""
    return (grid[0] + window - 1) // window, (grid[1] + window - 1) // window


def split(patches: Tensor, grid: tuple[int, int], window: int) -> Tensor:
    """Patches (B, heads, h * w, d) -> windows (B * count, heads, window ** 2, d), in raster order, with zeros where they stick out."""
    rows, columns = windows_along(grid, window)
    x = patches.unflatten(2, grid)
    x = F.pad(x, (0, 0, 0, columns * window - grid[1], 0, rows * window - grid[0]))
    x = x.unflatten(3, (columns, window)).unflatten(2, (rows, window))  # (B, heads, rows, window, columns, window, d)
    return x.permute(0, 2, 4, 1, 3, 5, 6).flatten(4, 5).flatten(0, 2)


def merge(windows: Tensor, grid: tuple[int, int], window: int) -> Tensor:
    """The inverse of :func:`split`, without the padding."""
    rows, columns = windows_along(grid, window)
    x = windows.unflatten(0, (-1, rows, columns)).unflatten(4, (window, window))  # (B, rows, columns, heads, window, window, d)
    x = x.permute(0, 3, 1, 4, 2, 5, 6).flatten(4, 5).flatten(2, 3)
    return x[:, :, : grid[0], : grid[1]].flatten(2, 3)


def inside(height: int, width: int, window: int, device: torch.device) -> Tensor:
    """Which tokens of each window are there, the cls token first and no padding: bool (count, 1, 1, 1 + window ** 2)."""
    patches = split(torch.ones(1, 1, height * width, 1, device=device), (height, width), window)
    return F.pad(patches.transpose(2, 3), (1, 0), value=1.0).bool()
