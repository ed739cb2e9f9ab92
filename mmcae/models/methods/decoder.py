"""The decoder: turns the predicted latents of the masked patches into their targets. It never sees the visible ones."""

from mmengine.model import BaseModule
from torch import Tensor, nn

from ...registry import MODELS
from ..encoders.layers import LAYER_NORM_EPS, Block, drop_path_rates, init_stack


@MODELS.register_module()
class CAEDecoder(BaseModule):
    """Decoder of CAE (arXiv 2202.03026, section 3): self-attention among the masked patches, then a linear head.

    Args:
        embed_dims: Width D.
        num_outputs: Size of the tokenizer's vocabulary, or numbers per patch of a regression target.
        num_layers: Number of blocks; 0 leaves norm and head.
        num_heads: Attention heads.
        feedforward_channels: Width of the MLPs' hidden layer; 4 D where not given.
        drop_path_rate: Stochastic depth of the last block, linearly less in earlier ones.
        layer_scale_init_value: Initial layer scale; 0 leaves it out.
    """

    def __init__(
        self,
        embed_dims: int = 768,
        num_outputs: int = 8192,
        num_layers: int = 4,
        num_heads: int = 12,
        feedforward_channels: int | None = None,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 0.1,
    ):
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(embed_dims, num_heads, feedforward_channels, drop_path=rate, init_value=layer_scale_init_value)
            for rate in drop_path_rates(drop_path_rate, num_layers)
        )
        self.norm = nn.LayerNorm(embed_dims, eps=LAYER_NORM_EPS)
        self.head = nn.Linear(embed_dims, num_outputs)
        init_stack(self)

    def forward(self, latents: Tensor, positions: Tensor) -> Tensor:
        """Latents and positions of the masked patches (B, m, D) -> predictions (B, m, num_outputs)."""
        x = latents + positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))
