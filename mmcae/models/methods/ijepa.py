"""I-JEPA (arXiv 2301.08243). Reads like its figure: a context encoder, a predictor, and the target encoder's latents of several blocks."""

import numpy as np
import torch
import torch.nn.functional as F
from mmpretrain.structures import DataSample
from torch import Tensor

from ...checkpoints.tables import sincos_position_table
from ...registry import MODELS
from ..encoders.layers import pick
from .base import at_least_float
from .latent_target import LatentTargetModel
from .mae import MAEDecoder


@MODELS.register_module()
class JEPAPredictor(MAEDecoder):
    """A narrow ViT: latents of the context and positions of a target block -> predicted latents of the block, as wide as the encoder's.

    Args:
        in_dims, embed_dims, num_layers, num_heads, feedforward_channels: See :class:`.mae.MAEDecoder`.
    """

    def __init__(
        self,
        in_dims: int = 768,
        embed_dims: int = 384,
        num_layers: int = 6,
        num_heads: int = 12,
        feedforward_channels: int | None = None,
    ):
        super().__init__(in_dims, embed_dims, in_dims, num_layers, num_heads, feedforward_channels)


@MODELS.register_module()
class IJEPA(LatentTargetModel):
    """Latents of target blocks are predicted from those of the context, each block by itself.

    With masks of :class:`MultiBlockMaskGenerator` there are several blocks for each image; with any other generator the masked patches are
    one block. Our encoder has a cls token, which I-JEPA's has not: the predictor does not see it.

    Args:
        backbone, ema, weight_init, data_preprocessor, init_cfg: See :class:`.latent_target.LatentTargetModel`.
        predictor: A :class:`JEPAPredictor`.

    Raises:
        ConfigError: Parts that do not fit each other.
    """

    PARTS = ('backbone', 'predictor', 'target_encoder')

    def __init__(self, backbone: dict, predictor: dict | None = None, ema: dict | None = None, **settings):
        super().__init__(backbone, ema, **settings)
        self.predictor = self.build_part('predictor', predictor)
        embed = self.predictor.embed
        self.check_width('predictor', embed.in_features)
        self.register_buffer('pos_embed', sincos_position_table(self.backbone.grid, embed.out_features))

    def split(self, data_samples: list[DataSample], images: Tensor) -> tuple[Tensor, Tensor]:
        """The context, int64 (B, n), and the target blocks, int64 (B, T, k), which may overlap."""
        visible, masked = super().split(data_samples, images)
        if 'target_blocks' not in data_samples[0]:
            return visible, masked.unsqueeze(1)
        blocks = torch.from_numpy(np.stack([sample.target_blocks for sample in data_samples]))
        return visible, blocks.to(images.device, non_blocking=True)

    def forward_loss(self, images: Tensor, view: None, visible: Tensor, masked: Tensor) -> dict[str, Tensor]:
        """`loss_main`, the smooth L1 loss over all target blocks (B, T, k), and `target_std`: near 0 targets have collapsed."""
        grid = self.backbone.grid_of(images.shape[-2:])
        target = pick(self.teach(images), masked.flatten(1))
        prediction = at_least_float(self.predict_blocks(images, visible, masked, grid).flatten(1, 2))
        target = target.to(prediction.dtype)
        return dict(loss_main=F.smooth_l1_loss(prediction, target), target_std=target.flatten(0, 1).std(dim=0).mean())

    def predict_blocks(self, images: Tensor, visible: Tensor, blocks: Tensor, grid: tuple[int, int]) -> Tensor:
        """Predicted latents (B, T, k, D) of blocks (B, T, k), from the patches that are visible."""
        prefix, (batch, count, _) = self.backbone.num_prefix_tokens, blocks.shape
        context = self.backbone.encode(images, visible)[:, prefix:].repeat_interleave(count, dim=0)
        positions = self.positions(grid)
        seen, wanted = pick(positions, visible).repeat_interleave(count, dim=0), pick(positions, blocks.flatten(0, 1))
        return self.predictor(context, seen, wanted).unflatten(0, (batch, count))

    @torch.no_grad()
    def teach(self, images: Tensor) -> Tensor:
        """Targets (B, N, D): the target encoder's latents of the whole image, each normalised over its channels."""
        latents = at_least_float(self.teacher.encode(images)[:, self.teacher.num_prefix_tokens :])
        return F.layer_norm(latents, latents.shape[-1:])

    @property
    def description(self) -> dict:
        """What a checkpoint tells of the method: its name, and the heads of the predictor."""
        return super().description | dict(num_heads=self.predictor.blocks[0].attn.num_heads)
