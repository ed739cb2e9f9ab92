"""CAE, the Context Autoencoder (arXiv 2202.03026). Reads top to bottom like the paper's figure."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmpretrain.models.selfsup.base import BaseSelfSupervisor
from mmpretrain.structures import DataSample
from torch import Tensor

from ...checkpoints import EncoderSpec, load_strictly, pretrained_source, read_weights
from ...checkpoints.loading import check_heads_agree
from ...checkpoints.tables import grid_of_table, resize_position_table, sincos_position_table
from ...registry import MODELS
from ...utils.errors import ConfigError, DataError
from ..encoders.layers import init_stack, pick
from ..encoders.vit import unknown_grid
from ..targets.cross_entropy import token_cross_entropy


@MODELS.register_module()
class CAE(BaseSelfSupervisor):
    """Masked image modelling with encoding kept apart from the pretext task.

    The encoder sees the visible patches only. The regressor predicts from them the latents of the masked patches; the alignment
    pulls these to what the encoder itself makes of the masked patches. The decoder turns the predictions into targets.

    Args:
        backbone: The encoder, a :class:`CAEViT`.
        regressor: A :class:`LatentContextualRegressor`.
        decoder: A :class:`CAEDecoder`. Without `num_outputs` it gets as many as the tokenizer's targets need.
        target_generator: A tokenizer of :mod:`mmcae.models.targets`. None for a model that only predicts.
        align_loss_weight: Weight of the alignment loss (2 in the paper); 0 turns the alignment off, and its forward pass with it.
        weight_init: 'xavier' (the paper's base model) or 'beit' (large); see :func:`mmcae.models.encoders.layers.init_stack`.
        data_preprocessor: Normalises the two views of an image: mmpretrain's TwoNormDataPreprocessor.
        init_cfg: `dict(type='Pretrained', checkpoint=PATH)` starts encoder, regressor and decoder from a pretraining checkpoint of
            mmcae, the authors or mmpretrain. To start from an encoder alone give the backbone such an init_cfg.

    Raises:
        ConfigError: Parts that do not fit each other.
    """

    def __init__(
        self,
        backbone: dict,
        regressor: dict,
        decoder: dict,
        target_generator: dict | None = None,
        align_loss_weight: float = 2.0,
        weight_init: str = 'xavier',
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ):
        super().__init__(backbone, target_generator=target_generator, data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        if not hasattr(self.backbone, 'check_pretrainable'):
            raise ConfigError(f'CAE encodes the visible patches alone, which {type(self.backbone).__name__} cannot: set mmcae.CAEViT')
        self.backbone.check_pretrainable()
        self.regressor = MODELS.build(regressor)
        self.decoder = MODELS.build(self.with_outputs(decoder))
        self.align_loss_weight = align_loss_weight
        self.weight_init = weight_init
        # Positions in the latent space, shared by regressor and decoder.
        self.register_buffer('pos_embed', sincos_position_table(self.backbone.grid, self.regressor.embed_dims))
        self.check_parts()
        self.freeze_target_generator()
        # The tokenizer has a file of its own: checkpoints hold encoder, regressor and decoder.
        self.register_state_dict_post_hook(drop_target_generator)
        self.register_load_state_dict_post_hook(do_not_miss_target_generator)

    # ------------------------------------------------------------ the figure, box by box

    def encode(self, images: Tensor, index: Tensor) -> Tensor:
        """Encoder: (B, C, H, W) and patch indices (B, n) -> latents (B, n, D) of these patches, seen without all others."""
        latents = self.backbone.encode(images, index)[:, 1:]
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

    def forward_parts(self, images: Tensor, visible: Tensor, masked: Tensor) -> dict[str, Tensor | None]:
        """All boxes but the target: predictions (B, m, V), predicted and aligned latents (B, m, D)."""
        grid = self.backbone.grid_of(images.shape[-2:])
        check_mask_grid(visible.shape[1] + masked.shape[1], images, grid)
        positions = self.positions(grid)
        latent_visible = self.encode(images, visible)
        latent_pred = self.regress(latent_visible, visible, masked, positions)
        latent_target = self.alignment_target(images, masked) if self.align_loss_weight else None
        prediction = self.decode(latent_pred, masked, positions)
        return dict(logits=prediction, latent_pred=latent_pred, latent_target=latent_target)

    # ------------------------------------------------------------ training

    def loss(self, inputs: list[Tensor], data_samples: list[DataSample]) -> dict[str, Tensor]:
        """Losses of one batch.

        Args:
            inputs: Two views of the same crops: the model's (B, C, H, W) and the tokenizer's (B, 3, h, w), both normalised.
            data_samples: B samples, each with a boolean `mask` over the patch grid, True = masked, equally many in all.

        Returns:
            `loss_main`, `loss_align` (already weighted; absent with weight 0) and, for tokens, `mlm_acc` in [0, 1].
        """
        if self.target_generator is None:
            raise ConfigError('This CAE was built without target_generator, so it has nothing to train on: give it a tokenizer')
        images, target_view = inputs
        self.check_shapes(images.shape[1:], target_view.shape[1:], data_samples[0].mask.shape)
        mask = torch.stack([sample.mask.flatten() for sample in data_samples])
        visible, masked = split_patches(mask, images)
        # First, so that the tokenizer's feature maps do not lie in memory beside all that the backward pass needs.
        target = self.target_generator.targets(target_view, masked)
        parts = self.forward_parts(images, visible, masked)
        return self.losses(parts['logits'], target, parts['latent_pred'], parts['latent_target'])

    def losses(self, prediction: Tensor, target: Tensor, latent_pred: Tensor, latent_target: Tensor | None) -> dict[str, Tensor]:
        """Loss terms from predictions (B, m, V) and targets: token ids (B, m), or numbers (B, m, V); latents (B, m, D) each."""
        if target.is_floating_point():
            prediction = at_least_float(prediction)
            losses = dict(loss_main=F.mse_loss(prediction, target.to(prediction.dtype)))
        else:
            prediction, target = prediction.flatten(0, 1), target.flatten()
            accuracy = (prediction.detach().argmax(-1) == target).float().mean()
            losses = dict(loss_main=token_cross_entropy(prediction, target), mlm_acc=accuracy)
        if latent_target is not None:
            latent_pred = at_least_float(latent_pred)
            losses['loss_align'] = self.align_loss_weight * F.mse_loss(latent_pred, latent_target.to(latent_pred.dtype))
        return losses

    def predict(self, images: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """What the model makes of masked images; differentiable.

        Args:
            images: (B, C, H, W), normalised.
            mask: bool (B, N) or (B, h, w), True = masked, equally many in every image.

        Returns:
            `logits` (B, M, V), `latent_pred` (B, M, D) and `latent_target` (B, M, D), the masked patches in raster order.
        """
        visible, masked = split_patches(mask.flatten(1), images)
        parts = self.forward_parts(images, visible, masked)
        if parts['latent_target'] is None:
            parts['latent_target'] = self.alignment_target(images, masked)
        return parts

    @property
    def description(self) -> dict:
        """What a checkpoint tells of the method: its name and target, and the heads of regressor and decoder."""
        target = type(self.target_generator).__name__ if self.target_generator is not None else None
        return dict(name=type(self).__name__, target=target, num_heads=self.regressor.blocks[0].attn.num_heads)

    # ------------------------------------------------------------ set-up

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """The position table (1, h * w, D) for a patch grid, resized as the encoder resizes its own."""
        return resize_position_table(self.pos_embed, self.backbone.grid, grid, by_scale=True)

    def init_weights(self):
        """Fresh weights in all parts, then those of the checkpoints that the model's, the encoder's and the tokenizer's init_cfg name."""
        for part in (self.backbone, self.regressor, self.decoder):
            init_stack(part, self.weight_init)
        if pretrained_source(self.backbone.init_cfg):
            self.backbone.init_weights()
        source = pretrained_source(self.init_cfg)
        if source:
            self.load_pretrained(**source)
        if self.target_generator is not None:
            self.target_generator.init_weights()
            self.freeze_target_generator()
        self._is_init = True

    def load_pretrained(self, checkpoint, allow_missing=(), prefix='', norm=None) -> str:
        """Encoder, regressor and decoder from a pretraining checkpoint of any known layout, strictly; returns the report."""
        weights = read_weights(checkpoint, prefix, norm=norm)
        spec = weights.spec()
        check_heads_agree(weights.origin, spec.num_heads, self.backbone.spec.num_heads, 'model.backbone.arch')
        return load_strictly(self, weights.cae, weights.origin, allow_missing, spec=spec)

    def fit_state_dict(self, state: dict[str, Tensor], spec: EncoderSpec | None = None) -> dict[str, Tensor]:
        """Resize the position tables of a whole state dict to this model's grid; see :meth:`CAEViT.fit_state_dict`."""
        encoder = {key.removeprefix('backbone.'): value for key, value in state.items() if key.startswith('backbone.')}
        fitted = {f'backbone.{key}': value for key, value in self.backbone.fit_state_dict(encoder, spec).items()}
        table = state.get('pos_embed', self.pos_embed)
        source = spec.grid if spec else grid_of_table(table, self.backbone.grid)
        if source is None:
            raise unknown_grid('pos_embed', table.shape[1])
        if source != self.backbone.grid:
            fitted['pos_embed'] = resize_position_table(table.float(), source, self.backbone.grid)
        return {**state, **fitted}

    def outputs_wanted(self) -> int | None:
        """Outputs of the decoder that the tokenizer's targets need: its vocabulary, or numbers per patch. None without a tokenizer."""
        return getattr(self.target_generator, 'vocab_size', None) or getattr(self.target_generator, 'target_dim', None)

    def with_outputs(self, decoder: dict) -> dict:
        """The decoder's config with `num_outputs` filled in where it is left open."""
        if decoder.get('num_outputs') is not None or self.target_generator is None:
            return decoder
        return {**decoder, 'num_outputs': self.outputs_wanted()}

    def check_sample(self, inputs: list[Tensor], data_sample: DataSample):
        """Make sure that the two views (C, H, W), (C2, h, w) and the mask of one image out of the data pipeline fit this model.

        Raises:
            ConfigError: Names what does not fit, and what to set.
        """
        if not isinstance(inputs, list) or len(inputs) != 2 or 'mask' not in data_sample:
            raise ConfigError('CAE needs two views and a mask of every image: the pipeline lacks mmcae.TwoViewCrop or a mask generator')
        images, target_view = inputs
        self.check_shapes(images.shape, target_view.shape, data_sample.mask.shape)
        for name, channels in (('mean', len(images)), ('second_mean', len(target_view))):
            given = getattr(self.data_preprocessor, name, None)
            if given is not None and given.numel() not in (1, channels):
                raise ConfigError(
                    f'data_preprocessor.{name} has {given.numel()} values, but the images have {channels} channels: give it {channels} or 1'
                )

    def check_shapes(self, images: Sequence[int], target_view: Sequence[int], mask: Sequence[int]):
        """The same for shapes alone: of the views, (C, H, W) and (C2, h, w), and of the mask, (rows, columns)."""
        channels = self.backbone.patch_embed.proj.in_channels
        if images[0] != channels:
            raise ConfigError(
                f'The images have {images[0]} channels, but the encoder was made for {channels}: set model.backbone.in_channels='
                f'{images[0]}, or load them with mmcae.LoadImage(channels={channels})'
            )
        grid = self.backbone.grid_of(images[1:])
        if math.prod(mask) != math.prod(grid) or (len(mask) == 2 and tuple(mask) != grid):
            raise ConfigError(f'The masks are {tuple(mask)}, but the encoder has {grid} patches: set grid={grid} of the mask generator')
        if self.target_generator is not None:
            if hasattr(self.target_generator, 'check_channels'):
                self.target_generator.check_channels(target_view[0])
            self.target_generator.check_view(tuple(target_view[1:]), grid)

    def check_parts(self):
        """Fail at build time where the parts cannot work together."""
        if self.regressor.in_dims != self.backbone.embed_dims:
            raise ConfigError(
                f'regressor.in_dims={self.regressor.in_dims}, but the encoder is {self.backbone.embed_dims} wide: make them equal'
            )
        decoder_dims = self.decoder.head.in_features
        if decoder_dims != self.regressor.embed_dims:
            raise ConfigError(f'decoder.embed_dims={decoder_dims} and regressor.embed_dims={self.regressor.embed_dims}: make them equal')
        outputs, tokenizer = self.decoder.head.out_features, self.target_generator
        wanted = self.outputs_wanted()
        if wanted not in (None, outputs):
            raise ConfigError(
                f'decoder.num_outputs={outputs}, but {type(tokenizer).__name__} has targets of {wanted}: set num_outputs={wanted}'
            )
        if tokenizer is not None:
            tokenizer.check_preprocessor(self.data_preprocessor)

    def freeze_target_generator(self):
        if self.target_generator is not None:
            self.target_generator.requires_grad_(False).eval()

    def train(self, mode: bool = True):
        """Training mode for all but the tokenizer, which is fixed."""
        super().train(mode)
        self.freeze_target_generator()
        return self


def drop_target_generator(model: CAE, state_dict: dict, prefix: str, local_metadata: dict):
    """Leave the tokenizer out of a state dict."""
    for key in [key for key in state_dict if key.startswith(f'{prefix}target_generator.')]:
        del state_dict[key]


def do_not_miss_target_generator(model: CAE, incompatible_keys):
    """Take the tokenizer off the list of what a state dict lacks."""
    missing = incompatible_keys.missing_keys
    missing[:] = [key for key in missing if 'target_generator.' not in key]


def split_patches(mask: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Raster indices of the visible and of the masked patches: int64 (B, n) and (B, m), ascending, on the images' device.

    Args:
        mask: bool (B, N), True = masked. A mask on the CPU spares a GPU the wait for its count.
        images: The batch it belongs to.

    Raises:
        DataError: The numbers of masked patches differ within the batch, or none or all are masked.
    """
    counts = mask.sum(dim=1)
    count = int(counts[0])
    if bool((counts != count).any()):
        raise DataError(f'All masks of a batch need equally many masked patches, got {sorted(set(counts.tolist()))}')
    if not 0 < count < mask.shape[1]:
        raise DataError(f'A mask hides {count} of {mask.shape[1]} patches: at least one must be masked and one visible')
    order = mask.to(torch.uint8).argsort(dim=1, stable=True).to(images.device, non_blocking=True)
    visible = mask.shape[1] - count
    return order[:, :visible], order[:, visible:]


def check_mask_grid(patches: int, images: Tensor, grid: tuple[int, int]):
    """Masks of fewer patches than the images have would leave the others out without a word.

    Raises:
        ConfigError: The masks were made for another grid.
    """
    if patches != grid[0] * grid[1]:
        raise ConfigError(
            f'The masks have {patches} patches, but images of {images.shape[-2]}x{images.shape[-1]} pixels have {grid[0] * grid[1]}: set '
            f'grid={grid} of the mask generator'
        )


def at_least_float(x: Tensor) -> Tensor:
    """Losses are computed in float32 under mixed precision, and in float64 where the model is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
