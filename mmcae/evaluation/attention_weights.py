"""The attention weights that a model uses, computed beside its forward pass, which stays as it is."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..models.encoders.base import Encoder
from ..utils.errors import ConfigError


@torch.no_grad()
def weights_of(attention: nn.Module, run: Callable[[], object], queries: slice = slice(None)) -> Tensor:
    """The attention weights in a module, from the queries, keys and biases that it hands to torch's attention.

    Args:
        attention: An attention module of CAEViT, of the regressor or of timm.
        run: Calls the model that it is part of, which calls it once.
        queries: Which tokens' weights.

    Returns:
        (B, heads, m, n), each row sums to 1.

    Raises:
        ConfigError: It computes attention by other means than torch's function.
    """
    inside, found = [], []

    class Recorder(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if inside and function is F.scaled_dot_product_attention:
                found.append((args, kwargs or {}))
            return function(*args, **(kwargs or {}))

    hooks = [
        attention.register_forward_pre_hook(lambda *_: inside.append(True)),
        attention.register_forward_hook(lambda *_: inside.clear(), always_call=True),
    ]
    try:
        with Recorder():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise ConfigError(f'{type(attention).__name__} computes attention by means of its own, so that its weights are not known')
    args, kwargs = found[-1]  # with windows there are two calls, and the second is that of cls, which sees all tokens
    query, key = args[0][:, :, queries], args[1]
    bias = args[3] if len(args) > 3 else kwargs.get('attn_mask')
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if bias is not None:
        bias = bias.expand(*bias.shape[:-2], args[0].shape[2], key.shape[2])[..., queries, :]
        scores = scores.masked_fill(~bias, float('-inf')) if bias.dtype == torch.bool else scores + bias
    return scores.softmax(dim=-1)


def self_attention(encoder: Encoder, images: Tensor, block: int = -1, queries: slice = slice(None)) -> Tensor:
    """Attention weights of one block of an encoder.

    Args:
        encoder: In eval mode.
        images: (B, C, H, W), normalised.
        block: Number of the block; negative ones count from the end.
        queries: Which tokens' weights; all by default.

    Returns:
        (B, heads, queries, prefix + h * w), each row sums to 1; cls and other prefix tokens come first.

    Raises:
        ConfigError: There is no such block, or it attends within windows and weights of patches are asked for.
    """
    check_block(encoder, block, 'encoder')
    weights = weights_of(encoder.blocks[block].attn, lambda: encoder.encode(images), queries)
    rows, columns = encoder.grid_of(images.shape[-2:])
    tokens = encoder.num_prefix_tokens + rows * columns
    if weights.shape[2:] != (len(range(tokens)[queries]), tokens):
        raise ConfigError(f'block {block} attends within windows, so that there are no weights between all patches: choose a global block')
    return weights


def cross_attention(model: nn.Module, images: Tensor, mask: Tensor, block: int = -1) -> Tensor:
    """From which patches the regressor reads the masked ones: the weights of one of its blocks.

    Args:
        model: With `regressor` and `predict`, such as CAE, in eval mode.
        images: (B, C, H, W), normalised.
        mask: bool (B, h * w), True = masked, equally many in every image.
        block: Number of the regressor's block; negative ones count from the end.

    Returns:
        (B, heads, m, h * w), for each masked patch, in raster order, weights over all patches in raster order; they sum to 1. The regressor
        reads the visible latents and its own queries of the masked patches.

    Raises:
        ConfigError: The method has no regressor, or it has no such block.
    """
    if not hasattr(model, 'regressor'):
        raise ConfigError(f'{type(model).__name__} has no regressor, whose attention could be drawn')
    check_block(model.regressor, block, 'regressor')
    weights = weights_of(model.regressor.blocks[block].attn, lambda: model.predict(images, mask))
    # Keys are the visible patches, then the masked ones.
    order = mask.flatten(1).to(torch.uint8).argsort(dim=1, stable=True).to(weights.device)
    return weights.new_zeros(weights.shape).scatter(3, order[:, None, None].expand_as(weights), weights)


def entropy(weights: Tensor) -> float:
    """Mean entropy of attention weights (..., n), as a share of log(n): 0 where each query reads one token, 1 where it reads all alike."""
    values = weights.double()
    return float(-torch.xlogy(values, values).sum(dim=-1).mean() / torch.log(torch.tensor(float(weights.shape[-1]))))


def check_block(stack: nn.Module, block: int, name: str):
    """Refuse a block that is not there."""
    depth = len(stack.blocks)
    if not -depth <= block < depth:
        raise ConfigError(f'block {block} is not there: this {name} has {depth}, numbered from 0')
