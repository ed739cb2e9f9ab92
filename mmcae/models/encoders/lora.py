"""LoRA (arXiv 2106.09685): an encoder learns by small updates of its weights, which stay as they are beside them."""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ...checkpoints.low_rank import merged
from ...utils.errors import ConfigError

LAYERS = ('attention', 'all')


class LowRankUpdate(nn.Module):
    """The update of a linear layer's weight (rows, columns): `scale * up @ down`, zero at the start.

    Args:
        weight: The weight.
        rank: Of the update.
        alpha: The update is scaled by `alpha / rank`.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float):
        super().__init__()
        rows, columns = weight.shape
        self.up = nn.Parameter(weight.new_zeros(rows, rank))
        self.down = nn.Parameter(weight.new_empty(rank, columns))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        self.register_buffer('scale', torch.tensor(alpha / rank))

    def forward(self, weight: Tensor) -> Tensor:
        return merged(weight, self.up, self.down, self.scale)


def add_lora(blocks, rank: int = 8, alpha: float = 16.0, layers: str = 'attention'):
    """Give the linear layers of blocks an update each, as a parametrisation of torch.

    The encoders read the weights of their fused projections themselves, so a layer in place of the linear one (as the peft library has it)
    would be passed over, and a parametrisation is not.

    Args:
        blocks: Transformer blocks.
        rank, alpha: See :class:`LowRankUpdate`.
        layers: 'attention', the projections of the attention; 'all', those of the MLP too.

    Raises:
        ConfigError: A rank below 1 or as large as a layer, an `alpha` that is no number above 0, another choice of layers, or no layer.
    """
    if layers not in LAYERS:
        raise ConfigError(f'lora.layers={layers!r} is none of {LAYERS}')
    if type(rank) is not int or rank < 1:
        raise ConfigError(f'lora.rank={rank!r} must be a whole number, at least 1')
    if type(alpha) not in (int, float) or not 0 < alpha < math.inf:
        raise ConfigError(f'lora.alpha={alpha!r} must be a number above 0: updates are scaled by alpha / rank')
    chosen = [
        layer
        for block in blocks
        for name, layer in block.named_modules()
        if isinstance(layer, nn.Linear) and (layers == 'all' or 'attn' in name or name == 'in_proj')
    ]
    for layer in chosen:
        if rank >= min(layer.weight.shape):
            raise ConfigError(f'lora.rank={rank} is no less than a layer of {tuple(layer.weight.shape)} has: choose a smaller one')
        parametrize.register_parametrization(layer, 'weight', LowRankUpdate(layer.weight, rank, alpha))
    if not chosen:
        raise ConfigError('lora finds no layer: frozen_stages leaves it no block')


def is_update(name: str) -> bool:
    """Whether a parameter of this name belongs to an update."""
    return '.parametrizations.weight.0.' in name
