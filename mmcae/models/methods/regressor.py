"""The latent contextual regressor: predicts what the encoder would say of the masked patches, from the visible ones alone."""

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from ...registry import MODELS
from ..encoders.attention import attend
from ..encoders.layers import LAYER_NORM_EPS, add_residual, drop_path_rates, init_stack, inner_width, layer_scale


class CrossAttention(nn.Module):
    """Multi-head attention from queries to other tokens; biased queries and values, unbiased keys."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        inner = inner_width(dim, num_heads)
        self.q = nn.Linear(dim, inner, bias=False)
        self.k = nn.Linear(dim, inner, bias=False)
        self.v = nn.Linear(dim, inner, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(inner))
        self.v_bias = nn.Parameter(torch.zeros(inner))
        self.proj = nn.Linear(inner, dim)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, m, D), (B, n, D), (B, n, D) -> (B, m, D)."""
        q = F.linear(query, self.q.weight, self.q_bias)
        k = F.linear(key, self.k.weight)
        v = F.linear(value, self.v.weight, self.v_bias)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        x = attend(q, k, v)
        return self.proj(x.transpose(1, 2).flatten(2))


class CrossAttentionBlock(nn.Module):
    """Masked queries look at the visible latents and at each other.

    Three separate norms for query, key and value; positions enter queries and keys, not values. The second norm is part of the
    stream (the next residual starts from the normalised tokens), unlike in the encoder's blocks.
    """

    def __init__(self, dim: int, num_heads: int, hidden: int | None, drop_path: float, init_value: float):
        super().__init__()
        self.norm_q = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.norm_k = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.norm_v = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = CrossAttention(dim, num_heads)
        self.gamma_1 = layer_scale(dim, init_value)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, hidden or 4 * dim)
        self.gamma_2 = layer_scale(dim, init_value)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, masked: Tensor, visible: Tensor, masked_positions: Tensor, positions: Tensor) -> Tensor:
        """Masked (B, m, D) and visible (B, n, D) tokens, positions of the masked ones and of all (B, n + m, D) -> (B, m, D)."""
        context = torch.cat((visible, masked), dim=1)
        attended = self.attn(self.norm_q(masked + masked_positions), self.norm_k(context + positions), self.norm_v(context))
        x = self.norm2(add_residual(masked, attended, self.gamma_1, self.drop_path))
        return add_residual(x, self.mlp(x), self.gamma_2, self.drop_path)


@MODELS.register_module()
class LatentContextualRegressor(BaseModule):
    """Latent contextual regressor of CAE (arXiv 2202.03026, section 3).

    Args:
        in_dims: Width C of the encoder.
        embed_dims: Width D of regressor and decoder. Where it is not C, latents are projected (linear, LN) first.
        num_layers: Number of cross-attention blocks.
        num_heads: Attention heads.
        feedforward_channels: Width of the MLPs' hidden layer; 4 D where not given.
        drop_path_rate: Stochastic depth of the last block, linearly less in earlier ones.
        layer_scale_init_value: Initial layer scale; 0 leaves it out.
        final_norm: Normalise the predictions. CAE v2 does without, since its head begins with a norm.
    """

    def __init__(
        self,
        in_dims: int = 768,
        embed_dims: int = 768,
        num_layers: int = 4,
        num_heads: int = 12,
        feedforward_channels: int | None = None,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 0.1,
        final_norm: bool = True,
    ):
        super().__init__()
        self.in_dims, self.embed_dims = in_dims, embed_dims
        self.project = nn.Identity()
        if embed_dims != in_dims:
            self.project = nn.Sequential(nn.Linear(in_dims, embed_dims), nn.LayerNorm(embed_dims, eps=LAYER_NORM_EPS))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dims))
        self.blocks = nn.ModuleList(
            CrossAttentionBlock(embed_dims, num_heads, feedforward_channels, rate, layer_scale_init_value)
            for rate in drop_path_rates(drop_path_rate, num_layers)
        )
        self.norm = nn.LayerNorm(embed_dims, eps=LAYER_NORM_EPS) if final_norm else nn.Identity()
        init_stack(self)

    def forward(self, visible: Tensor, visible_positions: Tensor, masked_positions: Tensor) -> Tensor:
        """Predict the latents of the masked patches.

        Args:
            visible: (B, n, D), the visible patches' latents after :attr:`project`.
            visible_positions: (B, n, D).
            masked_positions: (B, m, D).

        Returns:
            (B, m, D), in the space of the encoder's (projected) outputs.
        """
        positions = torch.cat((visible_positions, masked_positions), dim=1)
        masked = self.mask_token.expand(*masked_positions.shape[:2], -1)
        for block in self.blocks:
            masked = block(masked, visible, masked_positions, positions)
        return self.norm(masked)
