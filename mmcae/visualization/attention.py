"""Where an encoder looks: the attention of the cls token to the patches."""

from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..models import CAEViT, Encoder
from ..models.encoders.relative_position import relative_position_bias
from ..utils.errors import ConfigError
from .sheet import picture_sheet


def attention_maps(encoder: Encoder, images: Tensor, block: int = -1) -> Tensor:
    """Attention of the cls token to the patches in one block, computed beside the forward pass, which stays as it is.

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
    if not -encoder.num_layers <= block < encoder.num_layers:
        raise ConfigError(f'block {block} is not there: this encoder has {encoder.num_layers}, numbered from 0')
    find = cls_attention if isinstance(encoder, CAEViT) else cls_attention_of_timm
    with torch.no_grad():
        weights = find(encoder, images, block)
    return weights[..., encoder.num_prefix_tokens :].unflatten(-1, encoder.grid_of(images.shape[-2:]))


def cls_attention(encoder: CAEViT, images: Tensor, block: int) -> Tensor:
    """The attention of cls to all tokens, (B, heads, 1 + N), computed from what goes into a block's attention."""
    inputs = []
    attention = encoder.blocks[block].attn
    hook = attention.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    try:
        encoder.encode(images)  # all blocks, whatever out_indices says
    finally:
        hook.remove()
    (tokens,) = inputs
    bias = torch.cat((attention.q_bias, attention.k_bias, attention.v_bias))
    qkv = F.linear(tokens, attention.qkv.weight, bias).unflatten(-1, (3, attention.num_heads, -1))
    query, key = qkv[:, 0, 0], qkv[:, :, 1]  # (B, heads, d) of cls, (B, n, heads, d) of all
    scores = torch.einsum('bhd,bnhd->bhn', query, key) / query.shape[-1] ** 0.5
    if attention.bias_grid:
        table = attention.relative_position_bias_table
        scores = scores + relative_position_bias(table, attention.bias_grid, encoder.grid_of(images.shape[-2:]))[..., 0, :]
    return scores.softmax(dim=-1)


def cls_attention_of_timm(encoder: Encoder, images: Tensor, block: int) -> Tensor:
    """The same, from the queries and keys that the modules of timm hand to torch's attention, rotated and normalised."""

    class Recorder(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is F.scaled_dot_product_attention:
                found.append(args[:2])
            return function(*args, **(kwargs or {}))

    found = []
    with Recorder():
        encoder.encode(images)
    if len(found) != encoder.num_layers:
        raise ConfigError(f'This encoder computes attention {len(found)} times in {encoder.num_layers} blocks, so no block has one to draw')
    query, key = found[block]
    return (query[:, :, :1] @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(dim=-1)[:, :, 0]


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
