"""BEiT (arXiv 2106.08254). Reads like its figure: the encoder sees all patches, masked ones as a mask token, and predicts their targets."""

import torch
from torch import Tensor, nn

from ...registry import MODELS
from ..encoders.layers import pick
from .base import MaskedImageModel, check_mask_grid


@MODELS.register_module()
class BEiT(MaskedImageModel):
    """The encoder itself solves the pretext task; a linear layer is all that comes behind it.

    Args:
        backbone: The encoder, a :class:`CAEViT`.
        target_generator: Any target; the paper's is :class:`DALLETokenizer`. None for a model that only predicts.
        num_outputs: Numbers predicted for each patch. Left out, as many as the target has.
        complementary, weight_init, data_preprocessor, init_cfg: See :class:`.base.MaskedImageModel`.

    Raises:
        ConfigError: Parts that do not fit each other.
    """

    PARTS = ('backbone', 'mask_token', 'head')

    def __init__(self, backbone: dict, target_generator: dict | None = None, num_outputs: int | None = None, **settings):
        super().__init__(backbone, target_generator, **settings)
        width = self.backbone.embed_dims
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.head = nn.Linear(width, self.with_outputs(dict(num_outputs=num_outputs))['num_outputs'] or width)
        self.check_outputs(self.head.out_features, 'model')

    def forward_loss(self, images: Tensor, view: Tensor, visible: Tensor, masked: Tensor) -> dict[str, Tensor]:
        """`loss_main`, and the target's metrics."""
        target = self.targets(view, masked, visible)
        prediction = self.forward_parts(images, visible, masked)
        return dict(loss_main=self.criterion(prediction, target), **self.target_generator.metrics(prediction, target))

    def forward_parts(self, images: Tensor, visible: Tensor, masked: Tensor) -> Tensor:
        """Predictions (B, m, num_outputs) of the masked patches."""
        check_mask_grid(visible.shape[1] + masked.shape[1], images, self.backbone.grid_of(images.shape[-2:]))
        return self.head(encode_masked(self.backbone, images, masked, self.mask_token, visible.shape[1] + masked.shape[1]))

    def criterion(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The target's own loss: cross-entropy of tokens, mean squared error of numbers."""
        return self.target_generator.loss(prediction, target)


def encode_masked(encoder: nn.Module, images: Tensor, masked: Tensor, mask_token: Tensor, patches: int) -> Tensor:
    """What an encoder makes of the masked patches (B, m) of images when it sees a mask token in their place: (B, m, D)."""
    mask = torch.zeros(len(masked), patches, dtype=torch.bool, device=images.device).scatter_(1, masked, True)
    tokens = encoder.encode(images, mask=mask, mask_token=mask_token)
    prefix = encoder.num_prefix_tokens
    return pick(tokens[:, prefix:], masked)
