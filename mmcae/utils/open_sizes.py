"""Image sizes that are not known yet: how position tables follow them in exported and traced encoders.

`torch.jit.trace`, `torch.export` with dynamic shapes and the ONNX exporters run a model once and write down what it does. What depends on a
Python number or on a branch is fixed then; what is computed by tensors stays open.
"""

import torch
from torch import Tensor

CUBIC = -0.75  # the coefficient of torch's bicubic kernel
PIL_CUBIC = -0.5  # that of its antialiased one, which is PIL's


def is_open(*sizes) -> bool:
    """Whether a tracer leaves one of these sizes open: then it is no Python number. In `torch.compile` all sizes count as known."""
    return not all(isinstance(size, int) for size in sizes)


def is_recorded() -> bool:
    """Whether a tracer looks on: what it sees computed must not be kept for later, nor come from earlier."""
    exporting = getattr(torch.compiler, 'is_exporting', torch.compiler.is_compiling)  # before torch 2.7 there was one question for both
    return torch.jit.is_tracing() or exporting()


def resize_to_open_grid(table: Tensor, source: tuple[int, int], grid: tuple, antialiased: bool = False) -> Tensor:
    """What `resize_position_table` does by scale, for a grid that is open, by matrices that sample rows and columns.

    Args:
        table: (1, h * w, C).
        source: (h, w) of the table.
        grid: (h, w) wanted; either may be open.
        antialiased: Resize by size and antialiased, as timm does it, in place of by scale.

    Returns:
        (1, grid[0] * grid[1], C). The table's own values where the grids turn out to be equal.
    """
    places = [torch.arange(size, device=table.device, dtype=table.dtype) for size in grid]
    last = [place.amax(0) for place in places]
    if antialiased:
        rows, columns = (antialiasing_matrix(*each) for each in zip(places, source, last, strict=True))
        return torch.einsum('ia,jb,abc->ijc', rows, columns, table.unflatten(1, source)[0]).flatten(0, 1)[None]
    same = (last[0] == source[0] - 1) & (last[1] == source[1] - 1)
    rows, columns = (
        torch.where(same, cells(place, size), sampling_matrix(place, size, (end + 1.1) / size))
        for place, size, end in zip(places, source, last, strict=True)
    )
    maps = table.unflatten(1, source)[0]  # (h, w, C)
    return torch.einsum('ia,jb,abc->ijc', rows, columns, maps).flatten(0, 1)[None]


def sampling_matrix(places: Tensor, size: int, scale: Tensor) -> Tensor:
    """Bicubic weights (n, size) of `size` cells at n places of a grid that is `scale` times as fine; cells at the edge are repeated."""
    at = (places + 0.5) / scale - 0.5
    left = at.floor()
    matrix = torch.zeros_like(cells(at, size))
    for offset in (-1, 0, 1, 2):
        distance = (at - left - offset).abs()
        near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance**2 + 1
        far = CUBIC * (((distance - 5) * distance + 8) * distance - 4)
        weight = torch.where(distance <= 1, near, far)
        matrix = matrix + weight[:, None] * cells((left + offset).clamp(0, size - 1), size)
    return matrix


def antialiasing_matrix(places: Tensor, size: int, last: Tensor) -> Tensor:
    """Weights (n, size) by which `interpolate(mode='bicubic', antialias=True)` makes n cells out of `size`."""
    step = size / (last + 1)
    centres = (places + 0.5) * step - 0.5
    distance = ((centres[:, None] - torch.arange(size, device=places.device, dtype=places.dtype)) / step.clamp(min=1)).abs()
    near = ((PIL_CUBIC + 2) * distance - (PIL_CUBIC + 3)) * distance**2 + 1
    far = PIL_CUBIC * (((distance - 5) * distance + 8) * distance - 4)
    weights = torch.where(distance <= 1, near, torch.where(distance < 2, far, torch.zeros_like(far)))
    return weights / weights.sum(1, keepdim=True)


def cells(places: Tensor, size: int) -> Tensor:
    """(n, size): 1 where a place is that cell, else 0."""
    return (places[:, None] == torch.arange(size, device=places.device, dtype=places.dtype)).to(places.dtype)
