"""MAE, masked autoencoders (arXiv 2111.06377). Reads top to bottom like its figure: an encoder of visible patches, and a decoder of all."""

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...checkpoints.tables import sincos_position_table
from ...registry import MODELS
from ..encoders.layers import LAYER_NORM_EPS, Block, init_stack, pick
from .base import MaskedImageModel, check_mask_grid


@MODELS.register_module()
class MAEDecoder(BaseModule):
    """Self-attention among the visible latents and mask tokens, then a linear head (arXiv 2111.06377, section 3).

    Args:
        in_dims: Width of the encoder.
        embed_dims: Width D of the decoder.
        num_outputs: Numbers predicted for each patch. Left out, the method takes its target's.
        num_layers: Number of blocks.
        num_heads: Attention heads.
        feedforward_channels: Width of the MLPs' hidden layer; 4 D where not given.
    """

    def __init__(
        self,
        in_dims: int = 768,
        embed_dims: int = 512,
        num_outputs: int = 768,
        num_layers: int = 8,
        num_heads: int = 16,
        feedforward_channels: int | None = None,
    ):
        super().__init__()
        self.embed = nn.Linear(in_dims, embed_dims)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dims))
        self.blocks = nn.ModuleList(Block(embed_dims, num_heads, feedforward_channels) for _ in range(num_layers))
        self.norm = nn.LayerNorm(embed_dims, eps=LAYER_NORM_EPS)
        self.head = nn.Linear(embed_dims, num_outputs)
        init_stack(self)

    def forward(self, latents: Tensor, visible: Tensor, masked: Tensor) -> Tensor:
        """Predict the masked patches.

        Args:
            latents: (B, p + n, in_dims): cls and registers, which have no position, and the visible patches.
            visible, masked: (B, n, D) and (B, m, D), the positions of the patches.

        Returns:
            (B, m, num_outputs).
        """
        tokens = self.embed(latents)
        prefix = tokens.shape[1] - visible.shape[1]
        x = torch.cat((tokens[:, :prefix], tokens[:, prefix:] + visible, self.mask_token + masked), dim=1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, -masked.shape[1] :]))


@MODELS.register_module()
class MAE(MaskedImageModel):
    """The decoder sees what the encoder made of the visible patches, so that it may go on encoding; CAE keeps the two apart.

    Args:
        backbone: The encoder, a :class:`CAEViT`; the paper's has `layer_scale_init_value=0`.
        decoder: A :class:`MAEDecoder`.
        target_generator: Any target; the paper's is :class:`PixelTargets`. None for a model that only predicts.
        complementary, weight_init, data_preprocessor, init_cfg: See :class:`.base.MaskedImageModel`.

    Raises:
        ConfigError: Parts that do not fit each other.
    """

    PARTS = ('backbone', 'decoder')

    def __init__(self, backbone: dict, decoder: dict | None = None, target_generator: dict | None = None, **settings):
        super().__init__(backbone, target_generator, **settings)
        self.decoder = self.build_part('decoder', self.with_outputs(decoder))
        embed = self.decoder.embed
        self.check_width('decoder', embed.in_features)
        self.check_outputs(self.decoder.head.out_features, 'decoder')
        self.register_buffer('pos_embed', sincos_position_table(self.backbone.grid, embed.out_features))

    def forward_loss(self, images: Tensor, view: Tensor, visible: Tensor, masked: Tensor) -> dict[str, Tensor]:
        """`loss_main`, and the target's metrics."""
        target = self.targets(view, masked, visible)
        prediction = self.forward_parts(images, visible, masked)
        return dict(loss_main=self.target_generator.loss(prediction, target), **self.target_generator.metrics(prediction, target))

    def forward_parts(self, images: Tensor, visible: Tensor, masked: Tensor) -> Tensor:
        """Predictions (B, m, num_outputs) of the masked patches."""
        grid = self.backbone.grid_of(images.shape[-2:])
        check_mask_grid(visible.shape[1] + masked.shape[1], images, grid)
        positions = self.positions(grid)
        return self.decoder(self.backbone.encode(images, visible), pick(positions, visible), pick(positions, masked))

    @property
    def description(self) -> dict:
        """What a checkpoint tells of the method: its name and target, and the heads of the decoder."""
        return super().description | dict(num_heads=self.decoder.blocks[0].attn.num_heads)
