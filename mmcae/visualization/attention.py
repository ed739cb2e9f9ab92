"""Where an encoder looks: the attention of the cls token to the patches."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from PIL import Image
from torch import Tensor

from ..evaluation.attention_weights import self_attention
from ..models import Encoder
from ..utils.errors import ConfigError
from .sheet import picture_sheet


def attention_maps(encoder: Encoder, images: Tensor, block: int = -1) -> Tensor:
    """Attention of the cls token to the patches in one block.

    Args:
        encoder: In eval mode.
        images: (B, C, H, W), normalised.
        block: Number of the block; negative ones count from the end.

    Returns:
        (B, heads, h, w), each head's weights in [0, 1]; they sum to 1 minus what cls gives to itself.

    Raises:
        ConfigError: There is no such block, or the encoder has no cls token.
    """
    if not encoder.has_cls:
        raise ConfigError('This encoder has no cls token, whose attention could be drawn')
    weights = self_attention(encoder, images, block, slice(1))[:, :, 0]
    return weights[..., encoder.num_prefix_tokens :].unflatten(-1, encoder.grid_of(images.shape[-2:]))


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
