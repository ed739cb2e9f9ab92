"""What all methods of masked image modelling share: patches are picked, parts are checked, weights are loaded, targets are frozen."""

import logging
import math
from collections.abc import Mapping, Sequence

import torch
from mmengine.logging import print_log
from mmpretrain.models.selfsup.base import BaseSelfSupervisor
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from ...checkpoints import EncoderSpec, load_strictly, pretrained_source, read_weights
from ...checkpoints.describing import normalised_otherwise
from ...checkpoints.loading import check_heads_agree
from ...checkpoints.tables import cannot_resize, grid_of_table, resize_position_table
from ...registry import MODELS
from ...utils.errors import ConfigError, DataError
from ..encoders.layers import init_stack, trunc_normal_
from ..targets.base import Target

TARGET = 'target_generator.'  # mmpretrain's name of the part, which is not saved


class MaskedImageModel(BaseSelfSupervisor):
    """Base of the methods: an encoder of visible patches, parts of the method's own, and a target that is fixed.

    A method says in `PARTS` which of its modules and parameters are saved, and writes :meth:`forward_loss`, which reads like its figure.
    With latent positions it registers a buffer `pos_embed` (1, N, D), which is resized with the encoder's. One that makes its targets
    itself sets `NEEDS_TARGET` to False.

    Args:
        backbone: The encoder, :class:`CAEViT` or :class:`TimmEncoder`.
        target_generator: A target of :mod:`mmcae.models.targets`. None for a model that only predicts.
        complementary: Use each mask twice: the patches that one half hides are what the other half sees. Every image gives two
            predictions, with its target computed once. Masks have to hide one half of the patches.
        weight_init: 'xavier' or 'beit'; see :func:`mmcae.models.encoders.layers.init_stack`.
        data_preprocessor: Normalises the views of an image.
        init_cfg: `dict(type='Pretrained', checkpoint=PATH)` starts all parts from a pretraining checkpoint of the same method. To start
            from an encoder alone give the backbone such an init_cfg.

    Raises:
        ConfigError: Parts that do not fit each other.
    """

    PARTS: tuple[str, ...] = ('backbone',)
    NEEDS_TARGET = True
    target_generator: Target | None

    def __init__(
        self,
        backbone: dict,
        target_generator: dict | None = None,
        complementary: bool = False,
        weight_init: str = 'xavier',
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ):
        self.check_part('backbone', backbone)
        super().__init__(backbone, target_generator=target_generator, data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        if not hasattr(self.backbone, 'check_pretrainable'):
            name = type(self.backbone).__name__
            raise ConfigError(
                f'{type(self).__name__} encodes the visible patches alone, which {name} cannot: set mmcae.CAEViT or mmcae.TimmEncoder'
            )
        self.backbone.check_pretrainable()
        self.complementary, self.weight_init = complementary, weight_init
        if self.target_generator is not None:
            if not isinstance(self.target_generator, Target):
                raise ConfigError(f'target_generator={type(self.target_generator).__name__} is no target of mmcae.models.targets')
            self.target_generator.check_preprocessor(self.data_preprocessor)
            self.target_generator.freeze()
        # The target has a file of its own: checkpoints hold what is trained.
        self.register_state_dict_post_hook(drop_target)
        self.register_load_state_dict_post_hook(do_not_miss_target)

    # ------------------------------------------------------------ training

    def forward_loss(self, images: Tensor, view: Tensor | None, visible: Tensor, masked: Tensor) -> dict[str, Tensor]:
        """The method: losses (names with `loss`) and metrics of one batch.

        Args:
            images: The encoder's view (B, C, H, W), normalised. With complementary masks each image is there twice.
            view: The target's view (b, c, h, w), normalised; b = B, or B / 2 with complementary masks. None without a target.
            visible, masked: int64 (B, n) and (B, m), raster indices of the patches; see :meth:`split`.
        """
        raise NotImplementedError

    def loss(self, inputs: Sequence[Tensor] | Tensor, data_samples: list[DataSample]) -> dict[str, Tensor]:
        """Losses of one batch.

        Args:
            inputs: One view or two views of the same crops: the encoder's (B, C, H, W) and the target's (B, c, h, w), normalised. A target
                that reads the encoder's view needs no second one.
            data_samples: B samples, each with a boolean `mask` over the patch grid, True = masked, equally many in all.

        Returns:
            Loss terms, already weighted, and metrics.
        """
        target = self.target_generator
        if target is None and self.NEEDS_TARGET:
            raise self.no_target()
        views = (inputs,) if isinstance(inputs, Tensor) else inputs
        images, view = views[0], views[1] if self.needs_two_views else None
        self.check_shapes(images.shape[1:], None if view is None else view.shape[1:], data_samples[0].mask.shape)
        if target is not None and target.reads_encoder_view:
            view = target.view_of(images, self.backbone.grid_of(images.shape[-2:]), self.data_preprocessor)
        visible, masked = self.split(data_samples, images)
        if self.complementary:
            images, visible, masked = both_halves(images, visible, masked)
        return self.forward_loss(images, view, visible, masked)

    def split(self, data_samples: list[DataSample], images: Tensor) -> tuple[Tensor, Tensor]:
        """What the encoder sees and what is predicted: raster indices int64 (B, n) and (B, m)."""
        return split_patches(torch.stack([sample.mask.flatten() for sample in data_samples]), images)

    @property
    def needs_two_views(self) -> bool:
        """Whether images need a second view, for the target."""
        return self.target_generator is not None and not self.target_generator.reads_encoder_view

    def targets(self, view: Tensor, masked: Tensor, visible: Tensor) -> Tensor:
        """The targets (B, m, ...) of the masked patches; with complementary masks one pass of the target serves both halves."""
        if not self.complementary:
            return self.target_generator.targets(view, masked)
        once = torch.cat((masked[: len(view)], visible[: len(view)]), dim=1)
        return torch.cat(self.target_generator.targets(view, once).chunk(2, dim=1))

    def forward(self, inputs, data_samples=None, mode: str = 'tensor', **kwargs):
        """mmengine's entry: mode 'loss' gives :meth:`loss`, mode 'tensor' the encoder's features.

        Raises:
            ConfigError: Mode 'predict', by which mmengine tests: a pretraining has no predictions to score.
        """
        if mode == 'predict':
            raise ConfigError(
                f'{type(self).__name__} has no predictions that a metric could score: judge its encoder by the kNN probe or '
                'mmcae evaluate, or watch it while it trains with mmcae.OnlineProbe'
            )
        return super().forward(inputs, data_samples, mode, **kwargs)

    # ------------------------------------------------------------ set-up

    @property
    def description(self) -> dict:
        """What a checkpoint tells of the method; a subclass adds to it what tensors do not tell."""
        return dict(name=type(self).__name__, target=type(self.target_generator).__name__ if self.target_generator is not None else None)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """The latent position table (1, h * w, D) for a patch grid, resized as the encoder resizes its own."""
        return resize_position_table(self.pos_embed, self.backbone.grid, grid, by_scale=True)

    def check_part(self, name: str, config):
        """Make sure that a part is described.

        Raises:
            ConfigError: It is left out, or no config.
        """
        if not isinstance(config, Mapping | nn.Module):
            raise ConfigError(f'model.{name}={config!r}: {type(self).__name__} needs a {name}, as a dict with a type')

    def build_part(self, name: str, config: dict, **settings) -> nn.Module:
        """A part of the method by its config, with further settings of the method's own."""
        self.check_part(name, config)
        return MODELS.build({**config, **settings})

    def part_parameters(self, name: str) -> list[nn.Parameter]:
        """The parameters of one of `PARTS`, which is a module or a parameter itself."""
        part = getattr(self, name)
        return [part] if isinstance(part, Tensor) else list(part.parameters())

    def with_outputs(self, head: dict) -> dict:
        """The config of the part that predicts, with `num_outputs` filled in where it is left open."""
        if not isinstance(head, Mapping) or head.get('num_outputs') is not None or self.target_generator is None:
            return head
        return {**head, 'num_outputs': self.target_generator.num_outputs}

    def check_width(self, name: str, in_dims: int):
        """Fail where a part reads latents of another width than the encoder's.

        Raises:
            ConfigError: With both widths.
        """
        if in_dims != self.backbone.embed_dims:
            raise ConfigError(f'{name}.in_dims={in_dims}, but the encoder is {self.backbone.embed_dims} wide: make them equal')

    def check_outputs(self, outputs: int, name: str):
        """Fail where a part predicts another number of values than the target has.

        Raises:
            ConfigError: With what to set.
        """
        wanted = self.target_generator.num_outputs if self.target_generator is not None else outputs
        if wanted != outputs:
            target = type(self.target_generator).__name__
            raise ConfigError(f'{name}.num_outputs={outputs}, but {target} has targets of {wanted}: set num_outputs={wanted}')

    def init_weights(self):
        """Fresh weights in all parts, then those of the checkpoints that the model's, the encoder's and the target's init_cfg name."""
        for name in self.PARTS:
            part = getattr(self, name)
            if isinstance(part, Tensor):
                trunc_normal_(part)
            else:
                part.init_weights() if name == 'backbone' and pretrained_source(part.init_cfg) else init_stack(part, self.weight_init)
        source = pretrained_source(self.init_cfg)
        if source:
            self.load_pretrained(**source)
        if source or pretrained_source(self.backbone.init_cfg):
            warning = normalised_otherwise(self.data_preprocessor, self.backbone.spec)
            if warning:
                print_log(warning, logger='current', level=logging.WARNING)
        if self.target_generator is not None:
            self.target_generator.init_weights()
            self.target_generator.freeze()
        self._is_init = True

    def load_pretrained(self, checkpoint, allow_missing=(), prefix: str = '', norm: str | None = None) -> str:
        """All parts from a pretraining checkpoint of any known layout, strictly; returns the report."""
        weights = read_weights(checkpoint, prefix, norm=norm)
        self.check_method('CAEv2' if weights.is_v2 else weights.method.get('name'), weights.origin)
        spec = weights.spec(img_size=self.backbone.spec.img_size)
        check_heads_agree(weights.origin, spec.num_heads, self.backbone.spec.num_heads, 'model.backbone.arch')
        parts = (*self.PARTS, 'pos_embed')
        state = {key: value for key, value in weights.state.items() if key.split('.')[0] in parts}
        return load_strictly(self, state, weights.origin, allow_missing, unused=len(weights.state) - len(state), spec=spec)

    def check_method(self, name: str | None, origin: str):
        """Refuse to go on from the checkpoint of another method; of an unknown one (None) the tensors decide.

        Raises:
            ConfigError: The checkpoint `origin` says that it is of another method.
        """
        if name not in (None, type(self).__name__):
            raise ConfigError(
                f'{origin} is of {name}, the model of {type(self).__name__}: start from its encoder alone, by init_cfg of the backbone'
            )

    def fit_state_dict(self, state: Mapping[str, Tensor], spec: EncoderSpec | None = None) -> dict[str, Tensor]:
        """Resize the position tables of a whole state dict to this model's grid; see :meth:`CAEViT.fit_state_dict`."""
        encoder = {key.removeprefix('backbone.'): value for key, value in state.items() if key.startswith('backbone.')}
        fitted = {f'backbone.{key}': value for key, value in self.backbone.fit_state_dict(encoder, spec).items()}
        table = state.get('pos_embed')
        if table is not None and hasattr(self, 'pos_embed'):
            source = spec.grid if spec else grid_of_table(table, self.backbone.grid)
            if source is None:
                raise cannot_resize('pos_embed', table.shape[1])
            if source != self.backbone.grid:
                fitted['pos_embed'] = resize_position_table(table.float(), source, self.backbone.grid)
        return {**state, **fitted}

    def check_sample(self, inputs: list[Tensor] | Tensor, data_sample: DataSample):
        """Make sure that the views (C, H, W) and the mask of one image out of the data pipeline fit this model.

        Raises:
            ConfigError: Names what does not fit, and what to set.
        """
        if self.target_generator is None and self.NEEDS_TARGET:
            raise self.no_target()
        needed = 2 if self.needs_two_views else 1
        views = [inputs] if isinstance(inputs, Tensor) else inputs
        if len(views) < needed or 'mask' not in data_sample:
            wanted, crop = ('two views', 'TwoViewCrop') if needed == 2 else ('a view', 'OneViewCrop')
            raise ConfigError(
                f'{type(self).__name__} needs {wanted} and a mask of every image: the pipeline lacks mmcae.{crop} or a mask generator'
            )
        self.check_shapes(views[0].shape, views[1].shape if needed == 2 else None, data_sample.mask.shape)
        for name, part in zip(('mean', 'second_mean'), views[:needed], strict=False):
            given = getattr(self.data_preprocessor, name, None)
            if given is not None and given.numel() not in (1, len(part)):
                raise ConfigError(
                    f'data_preprocessor.{name} has {given.numel()} values, but the images have {len(part)} channels: '
                    f'give it {len(part)} or 1'
                )
        if self.complementary and 2 * int(data_sample.mask.sum()) != data_sample.mask.numel():
            raise ConfigError(
                f'Complementary masks hide one half of the patches; this one hides {int(data_sample.mask.sum())} of '
                f'{data_sample.mask.numel()}: set num_masked or ratio of the mask generator, or complementary=False'
            )

    def split_mask(self, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The patches that a mask given by hand leaves and hides; see :func:`split_patches`.

        Args:
            images: (B, C, H, W).
            mask: bool, or 0 and 1, (B, N) or (B, h, w).

        Raises:
            DataError: It is no such mask, or the images are no batch.
            ConfigError: It is of another grid, or the images have other channels.
        """
        if not isinstance(mask, Tensor) or mask.ndim not in (2, 3) or images.ndim != 4 or len(mask) != len(images) or not len(mask):
            shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            raise DataError(f'Images (B, C, H, W) need a mask (B, N) or (B, h, w), got {tuple(images.shape)} and {shape}')
        hidden = mask.bool()
        if mask.dtype is not torch.bool and not torch.equal(hidden.to(mask.dtype), mask):
            raise DataError('A mask has True or 1 where a patch is hidden, and False or 0 elsewhere; this one has other values')
        self.check_shapes(images.shape[1:], None, mask.shape[1:])
        return split_patches(hidden.flatten(1), images)

    def no_target(self) -> ConfigError:
        """The error of a model that is to be trained without a target."""
        return ConfigError(f'This {type(self).__name__} was built without target_generator, so it has nothing to train on: give it one')

    def check_shapes(self, images: Sequence[int], view: Sequence[int] | None, mask: Sequence[int]):
        """The same for shapes alone: of the views, (C, H, W) and, if there is a second, (c, h, w), and of the mask, (rows, columns)."""
        channels = self.backbone.spec.in_channels
        if images[0] != channels:
            raise ConfigError(
                f'The images have {images[0]} channels, but the encoder was made for {channels}: set model.backbone.in_channels='
                f'{images[0]}, or load them with mmcae.LoadImage(channels={channels})'
            )
        grid = self.backbone.grid_of(images[1:])
        if math.prod(mask) != math.prod(grid) or (len(mask) == 2 and tuple(mask) != grid):
            raise ConfigError(f'The masks are {tuple(mask)}, but the encoder has {grid} patches: set grid={grid} of the mask generator')
        if self.target_generator is not None and (view is not None or not self.needs_two_views):
            self.target_generator.check_channels(images[0] if view is None else view[0])
            if view is not None:
                self.target_generator.check_view(tuple(view[1:]), grid)


def drop_target(model: MaskedImageModel, state_dict: dict, prefix: str, local_metadata: dict):
    """Leave the target out of a state dict."""
    for key in [key for key in state_dict if key.startswith(prefix + TARGET)]:
        del state_dict[key]


def do_not_miss_target(model: MaskedImageModel, incompatible_keys):
    """Take the target off the list of what a state dict lacks."""
    missing = incompatible_keys.missing_keys
    missing[:] = [key for key in missing if TARGET not in key]


# ---------------------------------------------------------------- patches


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


def both_halves(images: Tensor, visible: Tensor, masked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A batch and the same batch with the complement of each mask: (2 B, ...), the second half of the batch with the roles exchanged.

    Raises:
        DataError: The masks do not hide one half of the patches.
    """
    if visible.shape != masked.shape:
        count, patches = masked.shape[1], visible.shape[1] + masked.shape[1]
        raise DataError(f'Complementary masks hide one half of the patches; these hide {count} of {patches}')
    return torch.cat((images, images)), torch.cat((visible, masked)), torch.cat((masked, visible))


def other_half(x: Tensor) -> Tensor:
    """In the order of :func:`both_halves`, for each entry of a batch (2 B, ...) the one of the same image with the complementary mask."""
    return torch.cat(x.chunk(2)[::-1])


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
