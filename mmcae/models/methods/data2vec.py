"""data2vec (arXiv 2202.03555) for images. Reads like its figure: a student of masked images predicts what a teacher makes of whole ones."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...registry import MODELS
from ...utils.errors import ConfigError
from ..encoders.layers import pick
from .base import at_least_float, check_mask_grid
from .beit import encode_masked
from .latent_target import LatentTargetModel


@MODELS.register_module()
class Data2Vec(LatentTargetModel):
    """The student sees mask tokens, as in BEiT. Targets are the mean of the teacher's last blocks, each normalised by itself.

    Args:
        backbone, ema, weight_init, data_preprocessor, init_cfg: See :class:`.latent_target.LatentTargetModel`.
        top_blocks: How many of the teacher's last blocks make the target (K; 6 of 12 in the paper).
        beta: Where the smooth L1 loss turns from squares to absolute values (2 in the paper). None: the mean squared error.

    Raises:
        ConfigError: `top_blocks` or `beta` out of range; parts that do not fit each other.
    """

    PARTS = ('backbone', 'mask_token', 'head', 'target_encoder')

    def __init__(self, backbone: dict, ema: dict | None = None, top_blocks: int = 6, beta: float | None = 2.0, **settings):
        super().__init__(backbone, ema, **settings)
        depth, width = self.backbone.num_layers, self.backbone.embed_dims
        if not 1 <= top_blocks <= depth:
            raise ConfigError(f'top_blocks={top_blocks} must lie between 1 and {depth}, the number of blocks of the encoder')
        if beta is not None and beta <= 0:
            raise ConfigError(f'beta={beta} must be above 0, or None for the mean squared error')
        self.top_blocks, self.beta = top_blocks, beta
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.head = nn.Linear(width, width)

    def forward_loss(self, images: Tensor, view: None, visible: Tensor, masked: Tensor) -> dict[str, Tensor]:
        """`loss_main`, over the masked patches, and `target_std`, how much targets differ between patches: near 0 they have collapsed."""
        patches = visible.shape[1] + masked.shape[1]
        check_mask_grid(patches, images, self.backbone.grid_of(images.shape[-2:]))
        target = pick(self.teach(images), masked)
        prediction = at_least_float(self.head(encode_masked(self.backbone, images, masked, self.mask_token, patches)))
        target = target.to(prediction.dtype)
        loss = F.mse_loss(prediction, target) if self.beta is None else F.smooth_l1_loss(prediction, target, beta=self.beta)
        return dict(loss_main=loss, target_std=target.flatten(0, 1).std(dim=0).mean())

    @torch.no_grad()
    def teach(self, images: Tensor) -> Tensor:
        """Targets (B, N, D) of all patches: the mean over the last blocks, each token of each block normalised over its channels."""
        x, _, context = self.teacher.embed(images)
        outputs = []
        for depth in range(self.teacher.num_layers):
            x = self.teacher.run(depth, x, context)
            outputs.append(x)
        prefix = self.teacher.num_prefix_tokens
        return torch.stack([F.layer_norm(at_least_float(x), x.shape[-1:]) for x in outputs[-self.top_blocks :]]).mean(dim=0)[:, prefix:]
