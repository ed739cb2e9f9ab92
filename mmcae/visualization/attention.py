"""Where an encoder looks: the attention of the cls token to the patches."""

from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..models import CAEViT
from ..models.encoders.relative_position import relative_position_bias
from ..utils.errors import ConfigError
from .sheet import picture_sheet


def attention_maps(encoder: CAEViT, images: Tensor, block: int = -1) -> Tensor:
    """Attention of the cls token to the patches in one block, computed beside the forward pass, which stays as it is.

    Args:
        encoder: In eval mode.
        images: (B, C, H, W), normalised.
        block: Number of the block; negative ones count from the end.

    Returns:
        (B, heads, h, w), each head's weights in [0, 1]; they sum to 1 minus what cls gives to itself.

    Raises:
        ConfigError: There is no such block.
    """
    if not -encoder.num_layers <= block < encoder.num_layers:
        raise ConfigError(f'block {block} is not there: this encoder has {encoder.num_layers}, numbered from 0')
    inputs = []
    attention = encoder.blocks[block].attn
    hook = attention.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    try:
        with torch.no_grad():
            encoder.encode(images)  # all blocks, whatever out_indices says
    finally:
        hook.remove()
    (tokens,) = inputs
    grid = encoder.grid_of(images.shape[-2:])
    with torch.no_grad():
        bias = torch.cat((attention.q_bias, attention.k_bias, attention.v_bias))
        qkv = F.linear(tokens, attention.qkv.weight, bias).unflatten(-1, (3, attention.num_heads, -1))
        query, key = qkv[:, 0, 0], qkv[:, :, 1]  # (B, heads, d) of cls, (B, n, heads, d) of all
        scores = torch.einsum('bhd,bnhd->bhn', query, key) / query.shape[-1] ** 0.5
        if attention.bias_grid:
            table = attention.relative_position_bias_table
            scores = scores + relative_position_bias(table, attention.bias_grid, grid)[..., 0, :]
        return scores.softmax(dim=-1)[..., 1:].unflatten(-1, grid)


def overlay(image: np.ndarray, weights: np.ndarray, strength: float = 0.65) -> np.ndarray:
    """An image (H, W, 3), darkened, under a heat map of weights (h, w), scaled from their smallest to their largest value."""
    low, high = weights.min(), weights.max()
    scaled = (weights - low) / max(high - low, 1e-12)
    size = image.shape[1::-1]
    smooth = np.array(Image.fromarray(scaled.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
    heat = matplotlib.colormaps['inferno'](smooth)[..., :3] * 255
    return (image * (1 - strength) + heat * strength).round().astype(np.uint8)


def attention_sheet(images: Sequence[np.ndarray], maps: np.ndarray, side: int = 144) -> Image.Image:
    """One row per image: the image, the mean over the heads, then each head.

    Args:
        images: uint8 (H, W, 3).
        maps: (len(images), heads, h, w), see :func:`attention_maps`.
        side: Pixels of each picture on the sheet.
    """
    columns = ['image', 'mean of the heads', *(f'head {number}' for number in range(1, maps.shape[1] + 1))]
    rows = [
        [image, overlay(image, heads.mean(axis=0)), *(overlay(image, head) for head in heads)]
        for image, heads in zip(images, maps, strict=True)
    ]
    return picture_sheet(rows, columns, side)
