"""Pixels as targets, and cutting images into patches and back."""

import torch
from mmengine.utils import to_2tuple
from torch import Tensor

from ...registry import MODELS
from ...utils.errors import ConfigError
from .base import Target


@MODELS.register_module()
class PixelTargets(Target):
    """The pixels of each patch, as in MAE (arXiv 2111.06377, section 3): needs no training and no weights.

    Give the decoder `num_outputs = patch_size ** 2 * in_channels`, and the second view the size of the first.

    Args:
        patch_size: Pixels of its view under one patch: the encoder's patch size where both views have the same size.
        normalize: Take off each patch's mean and divide by its standard deviation, which makes better targets (MAE, table 1d).
        in_channels: Channels of the view.
    """

    # Added to the variance, so that flat patches do not blow up their noise; MAE's value.
    EPS = 1e-6

    def __init__(self, patch_size: int | tuple[int, int] = 16, normalize: bool = True, in_channels: int = 3):
        super().__init__()
        self.downsample = to_2tuple(patch_size)
        self.normalize, self.in_channels = normalize, in_channels
        self.num_outputs = self.downsample[0] * self.downsample[1] * in_channels

    def embed(self, images: Tensor) -> Tensor:
        """Images (B, C, h, w) -> patches (B, N, num_outputs)."""
        return patchify(images, self.downsample)

    def assign(self, vectors: Tensor) -> Tensor:
        """Patches (B, n, num_outputs) -> targets of the same shape."""
        return standardize(vectors, self.EPS)[0] if self.normalize else vectors

    def decode(self, targets: Tensor, reference: Tensor | None = None) -> Tensor:
        """Targets (B, N, num_outputs) -> images (B, C, h, w).

        Args:
            targets: Of all patches.
            reference: The view the targets belong to: it gives the grid, and with `normalize` the mean and spread of each patch, which
                such targets do not tell (as in MAE's own pictures).
        """
        if reference is None:
            raise ConfigError('PixelTargets.decode needs reference=, the view: its targets tell neither the grid nor the brightness')
        if self.normalize:
            _, mean, std = standardize(patchify(reference, self.downsample), self.EPS)
            targets = targets * std + mean
        return unpatchify(targets, self.downsample, self.token_grid(reference.shape[-2:]))


def patchify(images: Tensor, patch: tuple[int, int]) -> Tensor:
    """Images (B, C, h, w) -> patches (B, N, rows * columns * C) in raster order, each with its channels innermost (MAE's order)."""
    tiles = images.unfold(2, patch[0], patch[0]).unfold(3, patch[1], patch[1])
    return tiles.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, patch: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """The inverse of :func:`patchify`: patches (B, N, rows * columns * C) on a grid (rows, columns) -> images (B, C, h, w)."""
    tiles = patches.unflatten(1, grid).unflatten(3, (*patch, -1))
    return tiles.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def standardize(patches: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Patches (..., K) with mean 0 and variance at most 1, and the mean (..., 1) and spread (..., 1) that were taken off.

    Args:
        patches: Any patches.
        eps: Added to the variance: patches of less variance become small rather than noisy.
    """
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    std = (variance + eps).sqrt()
    return (patches - mean) / std, mean, std
