"""CAE, the Context Autoencoder (arXiv 2202.03026). Reads top to bottom like the paper's figure."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...checkpoints.tables import sincos_position_table
from ...registry import MODELS
from ...utils.errors import ConfigError
from ..encoders.layers import pick
from ..targets.base import Target, Tokenizer
from .base import MaskedImageModel, at_least_float, check_mask_grid, other_half


@MODELS.register_module()
class CAE(MaskedImageModel):
    """Masked image modelling with encoding kept apart from the pretext task.

    The encoder sees the visible patches only. The regressor predicts from them the latents of the masked patches; the alignment
    pulls these to what the encoder itself makes of the masked patches. The decoder turns the predictions into targets.

    Args:
        backbone: The encoder, a :class:`CAEViT` or :class:`TimmEncoder`.
        regressor: A :class:`LatentContextualRegressor`.
        decoder: A :class:`CAEDecoder`. Without `num_outputs` it gets as many as the target needs.
        target_generator: A target of :mod:`mmcae.models.targets`. None for a model that only predicts.
        align_loss_weight: Weight of the alignment loss (2 in the paper); 0 turns the alignment off, and its forward pass with it.
        complementary: Each half of the patches is predicted from the other one, and what the encoder makes of a half is the alignment
            target of the other prediction: no pass of the encoder is made for the alignment. Masks have to hide one half.
        weight_init: 'xavier' (the paper's base model) or 'beit' (large); see :func:`mmcae.models.encoders.layers.init_stack`.
        data_preprocessor: Normalises the two views of an image.
        init_cfg: `dict(type='Pretrained', checkpoint=PATH)` starts encoder, regressor and decoder from a pretraining checkpoint of
            mmcae, the authors or mmpretrain. To start from an encoder alone give the backbone such an init_cfg.

    Raises:
        ConfigError: Parts that do not fit each other.
    """

    PARTS = ('backbone', 'regressor', 'decoder')

    def __init__(
        self,
        backbone: dict,
        regressor: dict,
        decoder: dict,
        target_generator: dict | None = None,
        align_loss_weight: float = 2.0,
        complementary: bool = False,
        weight_init: str = 'xavier',
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ):
        super().__init__(backbone, target_generator, complementary, weight_init, data_preprocessor, init_cfg)
        self.regressor = self.build_part('regressor', regressor)
        self.decoder = self.build_part('decoder', self.with_outputs(decoder))
        self.align_loss_weight = align_loss_weight
        # Positions in the latent space, shared by regressor and decoder.
        self.register_buffer('pos_embed', sincos_position_table(self.backbone.grid, self.regressor.embed_dims))
        self.check_width('regressor', self.regressor.in_dims)
        decoder_dims = self.decoder.head.in_features
        if decoder_dims != self.regressor.embed_dims:
            raise ConfigError(f'decoder.embed_dims={decoder_dims} and regressor.embed_dims={self.regressor.embed_dims}: make them equal')
        self.check_outputs(self.decoder.head.out_features, 'decoder')

    # ------------------------------------------------------------ the figure, box by box

    def encode(self, images: Tensor, index: Tensor) -> Tensor:
        """Encoder: (B, C, H, W) and patch indices (B, n) -> latents (B, n, D) of these patches, seen without all others."""
        latents = self.backbone.encode(images, index)[:, self.backbone.num_prefix_tokens :]
        return self.regressor.project(latents)

    def regress(self, latent_visible: Tensor, visible: Tensor, masked: Tensor, positions: Tensor) -> Tensor:
        """Latent contextual regressor: latents of the visible patches (B, n, D) -> predicted latents of the masked (B, m, D)."""
        return self.regressor(latent_visible, pick(positions, visible), pick(positions, masked))

    @torch.no_grad()
    def alignment_target(self, images: Tensor, masked: Tensor) -> Tensor:
        """Alignment: what the encoder, as it is at this step, makes of the masked patches alone; no gradient, no second copy."""
        return self.encode(images, masked)

    def decode(self, latent_pred: Tensor, masked: Tensor, positions: Tensor) -> Tensor:
        """Decoder: predicted latents (B, m, D) -> predictions of the targets (B, m, V)."""
        return self.decoder(latent_pred, pick(positions, masked))

    def forward_parts(self, images: Tensor, visible: Tensor, masked: Tensor, complementary: bool = False) -> dict[str, Tensor | None]:
        """All boxes but the target: predictions (B, m, V), predicted and aligned latents (B, m, D)."""
        grid = self.backbone.grid_of(images.shape[-2:])
        check_mask_grid(visible.shape[1] + masked.shape[1], images, grid)
        positions = self.positions(grid)
        latent_visible = self.encode(images, visible)
        latent_pred = self.regress(latent_visible, visible, masked, positions)
        if not self.align_loss_weight:
            latent_target = None
        elif complementary:
            latent_target = other_half(latent_visible.detach())
        else:
            latent_target = self.alignment_target(images, masked)
        prediction = self.decode(latent_pred, masked, positions)
        return dict(logits=prediction, latent_pred=latent_pred, latent_target=latent_target)

    # ------------------------------------------------------------ training

    def forward_loss(self, images: Tensor, view: Tensor, visible: Tensor, masked: Tensor) -> dict[str, Tensor]:
        """`loss_main`, `loss_align` (already weighted; absent with weight 0), and the target's metrics, such as `mlm_acc` in [0, 1]."""
        # First, so that the target's feature maps do not lie in memory beside all that the backward pass needs.
        target = self.targets(view, masked, visible)
        parts = self.forward_parts(images, visible, masked, self.complementary)
        return self.losses(parts['logits'], target, parts['latent_pred'], parts['latent_target'])

    def losses(self, prediction: Tensor, target: Tensor, latent_pred: Tensor, latent_target: Tensor | None) -> dict[str, Tensor]:
        """Loss terms from predictions (B, m, V) and targets: numbers (B, m, V), or ids int64 (B, m); latents (B, m, D) each."""
        criterion = self.target_generator or (Target if target.is_floating_point() else Tokenizer)
        losses = dict(loss_main=criterion.loss(prediction, target), **criterion.metrics(prediction, target))
        if latent_target is not None:
            latent_pred = at_least_float(latent_pred)
            losses['loss_align'] = self.align_loss_weight * F.mse_loss(latent_pred, latent_target.to(latent_pred.dtype))
        return losses

    def predict(self, images: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """What the model makes of masked images; differentiable.

        Args:
            images: (B, C, H, W), normalised.
            mask: bool, or 0 and 1, (B, N) or (B, h, w), True = masked, equally many in every image.

        Returns:
            `logits` (B, M, V), `latent_pred` (B, M, D) and `latent_target` (B, M, D), the masked patches in raster order.
        """
        visible, masked = self.split_mask(images, mask)
        parts = self.forward_parts(images, visible, masked)
        if parts['latent_target'] is None:
            parts['latent_target'] = self.alignment_target(images, masked)
        return parts

    @property
    def description(self) -> dict:
        """What a checkpoint tells of the method: its name and target, and the heads of regressor and decoder."""
        return super().description | dict(num_heads=self.regressor.blocks[0].attn.num_heads)
