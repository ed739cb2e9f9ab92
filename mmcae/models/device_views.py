"""Make the views of a batch of crops on the device: resized with antialiasing, mirrored, changed in colour, all images at once.

Resizing is separable: every view is `rows @ crop @ columns`, where the two matrices hold the weights of PIL's filters for each image's
own size. Crops of unequal sizes are padded by weights of zero. Mirroring is another order of the columns.
"""

import math

import torch
from torch import Tensor

from ..datasets.crops import COLUMNS, FILTERS, JITTERS

AT_ONCE = 32  # images; bounds the memory for padded crops
GREY = (0.299, 0.587, 0.114)  # of RGB, as in ITU-R BT.601, which PIL uses


def make_views(pixels: Tensor, table: Tensor, device: torch.device, non_blocking: bool = True) -> list[Tensor]:
    """Views of a batch of crops.

    Args:
        pixels: uint8 or float, those of all crops one after another; see :mod:`mmcae.datasets.crops`.
        table: float64 (B, columns), on the CPU.
        device: Where to make them.
        non_blocking: Do not wait for the copy to a GPU.

    Returns:
        One or two float32 tensors (B, C, h, w) in [0, 255], of whole numbers where pixels are uint8 and no colours are changed.
    """
    shapes = table[:, [COLUMNS['height'], COLUMNS['width'], COLUMNS['channels']]].long().tolist()
    jittered = bool(table[:, COLUMNS['jitter_1']].any())
    kinds = [
        (int(height), int(width), FILTERS[int(number)])
        for name in ('view', 'second')
        for height, width, number in [table[0, COLUMNS[f'{name}_height'] :][:3].tolist()]
        if height
    ]
    pixels = pixels.to(device, non_blocking=non_blocking)
    table = table.to(device, torch.float32, non_blocking=non_blocking)
    crops = [part.view(shape) for part, shape in zip(pixels.split([math.prod(shape) for shape in shapes]), shapes, strict=True)]
    with torch.autocast(pixels.device.type, enabled=False), torch.no_grad():
        parts = [
            resized_views(crops[start : start + AT_ONCE], table[start : start + AT_ONCE], kinds) for start in range(0, len(crops), AT_ONCE)
        ]
        views = [torch.cat(same) for same in zip(*parts, strict=True)]
        return [jitter_colours(view, table) for view in views] if jittered else views


def resized_views(crops: list[Tensor], table: Tensor, kinds: list[tuple[int, int, str]]) -> list[Tensor]:
    """Crops (H, W, C) of unequal sizes -> for each kind, height, width and filter, a batch (B, C, h, w)."""
    height, width = (max(crop.shape[axis] for crop in crops) for axis in (0, 1))
    padded = crops[0].new_zeros(len(crops), height, width, crops[0].shape[2])
    for place, crop in zip(padded, crops, strict=True):
        place[: crop.shape[0], : crop.shape[1]] = crop
    whole, padded = not padded.is_floating_point(), padded.permute(0, 3, 1, 2).float()
    heights, widths = table[:, COLUMNS['height']], table[:, COLUMNS['width']]
    mirrored = table[:, COLUMNS['mirrored'], None, None].bool()
    views = []
    for rows, columns, name in kinds:
        across = filter_weights(widths, columns, width, name)
        across = torch.where(mirrored, across.flip(1), across)
        down = filter_weights(heights, rows, height, name)
        view = down[:, None] @ (padded @ across.mT[:, None])
        views.append((view.round() if whole else view).clamp(0, 255))
    return views


def filter_weights(lengths: Tensor, wanted: int, longest: int, name: str) -> Tensor:
    """How much of each of an image's pixels along one side is in each pixel of the resized side, as PIL computes it.

    Args:
        lengths: float (B,), pixels of the side of each image.
        wanted: Pixels of the resized side.
        longest: Pixels of the longest of all.
        name: One of `FILTERS`.

    Returns:
        (B, wanted, longest), zero beyond the image's own length; each row adds up to 1.
    """
    scale = (lengths / wanted)[:, None, None]
    centres = (torch.arange(wanted, device=lengths.device)[:, None] + 0.5) * scale
    places = torch.arange(longest, device=lengths.device) + 0.5
    weights = KERNELS[name](((places - centres) / scale.clamp_min(1)).abs())
    weights = weights.masked_fill(places > lengths[:, None, None], 0)
    return weights / weights.sum(-1, keepdim=True)


def _bilinear(x):
    return (1 - x).clamp_min(0)


def _bicubic(x, a=-0.5):
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0))


def _lanczos(x):
    return torch.where(x < 3, torch.sinc(x) * torch.sinc(x / 3), 0)


KERNELS = dict(bilinear=_bilinear, bicubic=_bicubic, lanczos=_lanczos)


def jitter_colours(images: Tensor, table: Tensor) -> Tensor:
    """Brightness, contrast and saturation of RGB images (B, 3, h, w) in [0, 255], changed by each image's own factors and in its order.

    Every change is a mixture `factor * x + (1 - factor) * reference`, where the reference is black, the image's mean grey, or its own grey.
    """
    mean = table[:, COLUMNS['grey'], None, None, None]
    luma = images.new_tensor(GREY)[:, None, None]
    for number in (1, 2, 3):
        kind, factor = (table[:, COLUMNS[f'{name}_{number}'], None, None, None] for name in ('jitter', 'factor'))
        contrast, saturation = (kind == JITTERS.index(name) for name in ('contrast', 'saturation'))
        grey = (images * luma).sum(1, keepdim=True)
        images = (factor * images + (1 - factor) * (mean * contrast + grey * saturation)).clamp(0, 255)
        mean = torch.where(kind == JITTERS.index('brightness'), (mean * factor).clamp_max(255), mean)
    return images
