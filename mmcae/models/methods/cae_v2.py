"""CAE v2 (arXiv 2211.09799). Reads top to bottom like its figure: encoder, regressor, and a frozen teacher to compare all tokens with."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...checkpoints.tables import sincos_position_table
from ...registry import MODELS
from ...utils.errors import ConfigError, DataError
from ..encoders.layers import LAYER_NORM_EPS, init_stack, pick
from ..targets.teacher import cosine
from .base import MaskedImageModel, check_mask_grid

TOKENS = ('cls', 'visible', 'masked')


@MODELS.register_module()
class PredictionHead(BaseModule):
    """A layer norm and a linear layer, the same for all tokens: (B, n, embed_dims) -> (B, n, num_outputs).

    Args:
        embed_dims: Width D of the tokens.
        num_outputs: Width K of the teacher's features.
    """

    def __init__(self, embed_dims: int = 768, num_outputs: int = 512):
        super().__init__()
        self.norm = nn.LayerNorm(embed_dims, eps=LAYER_NORM_EPS)
        self.fc = nn.Linear(embed_dims, num_outputs)
        init_stack(self)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, n, D) -> (B, n, K)."""
        return self.fc(self.norm(tokens))


@MODELS.register_module()
class CAEv2(MaskedImageModel):
    """Masked image modelling with a frozen teacher, such as CLIP: visible and masked patches are compared with it alike.

    The encoder sees the visible patches. The regressor predicts the masked ones from them. One head turns the cls token, the visible
    and the predicted masked latents into vectors, each of which is compared with what the teacher makes of the whole image at its place.

    Args:
        backbone: The encoder, a :class:`CAEViT` or :class:`TimmEncoder`.
        regressor: A :class:`LatentContextualRegressor`; its final norm is left out.
        predictor: Settings of the :class:`PredictionHead`; by default those that regressor and teacher ask for.
        target_generator: A :class:`mmcae.models.targets.Teacher`. None for a model that only predicts.
        supervise: The tokens that have a loss, out of 'cls', 'visible' and 'masked'; every token counts the same. Where encoder or teacher
            have no cls token, the other two.
        complementary: Each half of the patches is predicted from the other one, with one pass of the teacher for both predictions.
        weight_init, data_preprocessor, init_cfg: See :class:`.cae.CAE`; one view of the images is enough.

    Raises:
        ConfigError: Parts that do not fit each other; an unknown kind of token, or none.
    """

    PARTS = ('backbone', 'regressor', 'predictor')

    def __init__(
        self,
        backbone: dict,
        regressor: dict,
        target_generator: dict | None = None,
        predictor: dict | None = None,
        supervise: Sequence[str] = TOKENS,
        complementary: bool = False,
        weight_init: str = 'xavier',
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ):
        super().__init__(backbone, target_generator, complementary, weight_init, data_preprocessor, init_cfg)
        unknown = [kind for kind in supervise if kind not in TOKENS]
        if unknown or not supervise:
            raise ConfigError(f'supervise={list(supervise)} must name some of {TOKENS}')
        self.supervise = tuple(supervise)
        self.regressor = self.build_part('regressor', regressor, final_norm=False)
        settings = dict(type='mmcae.PredictionHead', embed_dims=self.regressor.embed_dims)
        self.predictor = MODELS.build(settings | self.with_outputs(dict(predictor or {})))
        self.register_buffer('pos_embed', sincos_position_table(self.backbone.grid, self.regressor.embed_dims))
        self.check_width('regressor', self.regressor.in_dims)
        if self.predictor.fc.in_features != self.regressor.embed_dims:
            raise ConfigError(f'predictor.embed_dims must be regressor.embed_dims={self.regressor.embed_dims}: leave it out')
        self.check_outputs(self.predictor.fc.out_features, 'predictor')
        if self.target_generator is not None and not hasattr(self.target_generator, 'tokens'):
            raise ConfigError(f'{type(self.target_generator).__name__} compares no tokens: the target of CAEv2 is a mmcae.Teacher')
        self.num_cls = int(self.backbone.has_cls)
        for owner, part in (('encoder', self.backbone), ('target', self.target_generator)):
            if 'cls' in self.supervise and not getattr(part, 'has_cls', True):
                raise ConfigError(f"This {owner} has no cls token to compare with: set supervise=['visible', 'masked']")

    # ------------------------------------------------------------ the figure, box by box

    def encode(self, images: Tensor, visible: Tensor) -> Tensor:
        """Encoder: (B, C, H, W) and patch indices (B, n) -> latents (B, [1 +] n, D), the cls token, if there is one, first."""
        tokens = self.backbone.encode(images, visible)
        prefix = self.backbone.num_prefix_tokens
        return self.regressor.project(torch.cat((tokens[:, : self.num_cls], tokens[:, prefix:]), dim=1))

    def regress(self, latent_visible: Tensor, visible: Tensor, masked: Tensor, positions: Tensor) -> Tensor:
        """Latent contextual regressor: latents of the visible patches (B, n, D) -> predicted latents of the masked (B, m, D)."""
        return self.regressor(latent_visible, pick(positions, visible), pick(positions, masked))

    def forward_parts(self, images: Tensor, visible: Tensor, masked: Tensor) -> dict[str, Tensor]:
        """All boxes but the teacher: `prediction` (B, [1 +] N, K) of cls, visible and masked tokens, `regressed` (B, m, D)."""
        grid = self.backbone.grid_of(images.shape[-2:])
        check_mask_grid(visible.shape[1] + masked.shape[1], images, grid)
        latents = self.encode(images, visible)
        regressed = self.regress(latents[:, self.num_cls :], visible, masked, self.positions(grid))
        return dict(prediction=self.predictor(torch.cat((latents, regressed), dim=1)), regressed=regressed)

    # ------------------------------------------------------------ training

    def forward_loss(self, images: Tensor, view: Tensor, visible: Tensor, masked: Tensor) -> dict[str, Tensor]:
        """`loss_main`, the mean over all supervised tokens."""
        target = self.teach(view, visible, masked)
        prediction = self.forward_parts(images, visible, masked)['prediction']
        sizes = (self.num_cls, visible.shape[1], masked.shape[1])
        return dict(loss_main=self.target_generator.loss(self.supervised(prediction, sizes), self.supervised(target, sizes)))

    def teach(self, view: Tensor, visible: Tensor, masked: Tensor) -> Tensor:
        """The teacher's features (B, [1 +] N, K) in the order of the predictions: cls, visible, masked. One pass serves both halves."""
        features = self.target_generator.tokens(view)
        features = features.repeat(len(visible) // len(view), 1, 1)
        patches = pick(features[:, int(self.target_generator.has_cls) :], torch.cat((visible, masked), dim=1))
        # A teacher without cls lends its first row, which is never supervised.
        return torch.cat((features[:, : self.num_cls], patches), dim=1)

    def supervised(self, tokens: Tensor, sizes: Sequence[int]) -> Tensor:
        """Of tokens (B, [1 +] N, K), by how many there are of cls, visible and masked ones, those that have a loss."""
        if set(self.supervise) == set(TOKENS):
            return tokens
        return torch.cat([part for kind, part in zip(TOKENS, tokens.split(sizes, dim=1), strict=True) if kind in self.supervise], dim=1)

    def predict(self, images: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """What the model makes of masked images; differentiable.

        Args:
            images: (B, C, H, W), normalised.
            mask: bool, or 0 and 1, (B, N) or (B, h, w), True = masked, equally many in every image.

        Returns:
            `prediction` (B, [1 +] N, K), of unit length, cls first, if there is one, and the patches in raster order; `regressed` (B, M,
            D), the latents of the masked patches in raster order.
        """
        visible, masked = self.split_mask(images, mask)
        parts = self.forward_parts(images, visible, masked)
        raster = torch.cat((visible, masked), dim=1).argsort(dim=1)
        patches = pick(parts['prediction'][:, self.num_cls :], raster)
        prediction = torch.cat((parts['prediction'][:, : self.num_cls], patches), dim=1)
        return dict(prediction=F.normalize(prediction, dim=-1, eps=0), regressed=parts['regressed'])

    @staticmethod
    def loss_of(prediction: Tensor, target_features: Tensor) -> Tensor:
        """The method's loss for predictions and a teacher's features (B, 1 + N, K) in the same order: the mean of 1 - cosine.

        Raises:
            DataError: The shapes differ, or vectors have no direction: they are zero, or not finite.
        """
        if prediction.shape != target_features.shape:
            raise DataError(f'Predictions {tuple(prediction.shape)} and target features {tuple(target_features.shape)} differ in shape')
        for name, vectors in (('prediction', prediction), ('target_features', target_features)):
            lengths = vectors.detach().to(torch.promote_types(vectors.dtype, torch.float32)).norm(dim=-1)
            wrong = int((~lengths.isfinite() | (lengths == 0)).sum())
            if wrong:
                raise DataError(f'{wrong} vectors of {lengths.numel()} in {name} are zero or not finite, which have no cosine')
        return (1 - cosine(prediction, target_features)).mean()

    @property
    def description(self) -> dict:
        """What a checkpoint tells of the method: its name and target, and the heads of the regressor."""
        return super().description | dict(num_heads=self.regressor.blocks[0].attn.num_heads)
