"""The baseline: mmpretrain's MAE, here on images of several sizes, so that it can be pretrained on the very data that CAE sees."""

import torch
from mmpretrain.models.selfsup import MAE as MMPretrainMAE
from torch import Tensor
from torch.func import functional_call

from ..registry import MODELS
from .layers import resize_position_table


@MODELS.register_module()
class MAE(MMPretrainMAE):
    """Masked autoencoder (arXiv 2111.06377), all of it mmpretrain's; only the position tables follow the size of the batch.

    mmpretrain's encoder and decoder have tables for one image size and fail on others. Here both are resized to the batch's grid, as CAE
    does it. At the size that the model was built for nothing differs from mmpretrain.

    A checkpoint of it serves as encoder of every config of this repository, with `model.backbone.layer_scale_init_value=0`.
    """

    def forward(self, inputs: Tensor, data_samples=None, mode: str = 'tensor'):
        """As mmpretrain's, for square images (B, C, H, H) of any size that the patches tile."""
        side = inputs.shape[-1] // self.backbone.patch_embed.projection.stride[0]
        tables = {'backbone.pos_embed': self.backbone.pos_embed, 'neck.decoder_pos_embed': self.neck.decoder_pos_embed}
        resized = {name: resize_table(table, side) for name, table in tables.items() if table.shape[1] != 1 + side**2}
        if not resized:
            return super().forward(inputs, data_samples, mode)
        return functional_call(self, resized, (inputs, data_samples, mode))


def resize_table(table: Tensor, side: int) -> Tensor:
    """A table (1, 1 + n * n, C) with the cls token's position first -> (1, 1 + side * side, C)."""
    source = round((table.shape[1] - 1) ** 0.5)
    patches = resize_position_table(table[:, 1:], (source, source), (side, side), by_scale=True)
    return torch.cat((table[:, :1], patches), dim=1)
