"""Patch features as pictures: their principal components as colours, and how similar they are to each other."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..utils.errors import DataError


def pca_colors(features: Sequence[Sequence[Tensor]]) -> list[list[np.ndarray]]:
    """The first three principal components of patch features as red, green and blue.

    Of each encoder they are those of all images together, so that the same colour in two images is the same feature. Components of two
    encoders have no order or sign in common: those of each further encoder are turned by the rotation (or reflection) that brings them
    nearest to the first one's on the same patches (orthogonal Procrustes), and all share one scale.

    Args:
        features: For each encoder, for each image (rows, columns, C). Widths and grids may differ between encoders.

    Returns:
        The same with uint8 (rows, columns, 3).

    Raises:
        DataError: Fewer than four patches in all, which have no three components.
    """
    projected = [components(images) for images in features]
    first = torch.cat([image.flatten(0, 1) for image in projected[0]])
    aligned = [projected[0]]
    for images in projected[1:]:
        same = torch.cat([regrid(image, like.shape[:2]).flatten(0, 1) for image, like in zip(images, projected[0], strict=True)])
        left, _, right = torch.linalg.svd(same.T @ first)
        aligned.append([image @ (left @ right) for image in images])
    values = torch.cat([image.flatten(0, 1) for images in aligned for image in images])
    low, high = (torch.quantile(values[:: max(1, len(values) // 100_000)], share, dim=0) for share in (0.01, 0.99))
    return [[((image - low) / (high - low).clamp_min(1e-12) * 255).clamp(0, 255).round().byte().numpy() for image in i] for i in aligned]


def components(images: Sequence[Tensor]) -> list[Tensor]:
    """Images (rows, columns, C) -> (rows, columns, 3), the first three principal components of all, of unit variance; zeros beyond C."""
    flat = torch.cat([image.flatten(0, 1) for image in images]).double()
    if len(flat) < 4:
        raise DataError(f'{len(flat)} patches have no three principal components: show more or larger images')
    mean = flat.mean(dim=0)
    values, vectors = torch.linalg.eigh((flat - mean).T @ (flat - mean) / len(flat))
    basis = vectors[:, -3:].flip(1) / values[-3:].flip(0).clamp_min(1e-12).sqrt()
    basis = torch.nn.functional.pad(basis, (0, 3 - basis.shape[1]))
    return [(image.double() - mean) @ basis for image in images]


def regrid(image: Tensor, grid: tuple[int, int]) -> Tensor:
    """(rows, columns, 3) resized to another grid."""
    return torch.nn.functional.interpolate(image.permute(2, 0, 1)[None], tuple(grid), mode='bilinear', antialias=True)[0].permute(1, 2, 0)


def similarities(features: Tensor) -> np.ndarray:
    """Cosines between all patches (rows, columns, C): uint8 (n, n), 0 for -1 and 255 for 1."""
    unit = torch.nn.functional.normalize(features.flatten(0, 1), dim=1)
    return ((unit @ unit.T + 1) * 127.5).round().clamp(0, 255).byte().numpy()
