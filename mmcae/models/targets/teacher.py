"""Features of a frozen model as targets: any model of timm, any backbone of mmpretrain or mmcae."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.utils import to_2tuple
from torch import Tensor, nn

from ...checkpoints import StateDict, load_strictly
from ...checkpoints import load_encoder as load_cae_encoder
from ...registry import MODELS
from ...utils.errors import CheckpointError, ConfigError, nearest
from .base import Tokenizer, read_tokenizer

REMEDY = 'Put the weights there as .safetensors or as a plain state dict; nothing is downloaded'


@MODELS.register_module()
class FeatureTargets(Tokenizer):
    """What a frozen model sees in each patch, to be regressed (as in MVP, arXiv 2203.05175, and data2vec, arXiv 2202.03555).

    The targets are vectors of the model's last feature map, each normalised to mean 0 and variance 1, so that the loss has the same scale
    whatever the model. Needs no training; the weights come from a local file and are never unpickled.

    Args:
        model: `dict(type='timm', model_name='vit_small_patch16_224', ...)` with further arguments of `timm.create_model` (ViTs of other
            sizes than `view_size` take `img_size` or `dynamic_img_size=True`), or the config of a backbone in mmpretrain's or our registry
            that gives a map: `dict(type='mmcae.CAEViT', arch='base', out_type='featmap')`, `dict(type='mmpretrain.ResNet', depth=50)`.
        view_size: Pixels of the view, (h, w) or one number for both: the second size of the pretraining. The model is tried with it.
        checkpoint: Local file of the model's weights; heads in it are left out. None leaves the model random: for measuring speed.
        normalize: Normalise the vectors.
        mean, std: Of the pixels in [0, 255] as the model was trained, a number or one for each channel. ImageNet's by default.
        in_channels: Channels of the view.

    Raises:
        CheckpointError: No such file, or not the weights of this model.
        ConfigError: The model is unknown, refuses the view, gives no map, or a map whose cells do not tile the view.
    """

    def __init__(
        self,
        model: dict,
        view_size: int | tuple[int, int],
        checkpoint: str | Path | None = None,
        normalize: bool = True,
        mean: float | Sequence[float] = (123.675, 116.28, 103.53),
        std: float | Sequence[float] = (58.395, 57.12, 57.375),
        in_channels: int = 3,
    ):
        super().__init__()
        self.normalize, self.mean, self.std, self.in_channels = normalize, mean, std, in_channels
        settings = dict(model)
        timm_model = settings.get('type') == 'timm'
        self.model = build_timm(settings, in_channels) if timm_model else build_backbone(settings)
        if checkpoint is not None:
            (load_timm if timm_model else load_backbone)(self.model, read_tokenizer(checkpoint, REMEDY), checkpoint)
        self.freeze()
        view = to_2tuple(view_size)
        features = self.try_with(view)
        grid = tuple(features.shape[2:])
        self.target_dim = features.shape[1]
        self.downsample = (view[0] // grid[0], view[1] // grid[1])
        # Convolutions round up where a view is no multiple of their stride, which timm tells.
        stride = to_2tuple(self.model.feature_info[-1]['reduction']) if timm_model else self.downsample
        if self.downsample != tuple(stride) or any(side % pixels for side, pixels in zip(view, self.downsample, strict=True)):
            raise ConfigError(f'{self.name} makes {grid} features of a view of {view} pixels, which they do not tile: change view_size')

    def init_weights(self):
        """Nothing: the weights are those of the checkpoint, which the model's own initialisation would overwrite."""
        self._is_init = True

    @property
    def name(self) -> str:
        return type(self.model).__name__

    def try_with(self, view: tuple[int, int]) -> Tensor:
        """The features of an empty view; a ConfigError where the model does not take one of this size or gives no map."""
        try:
            with torch.no_grad():
                return self.map_of(torch.zeros(1, self.in_channels, *view, device=next(self.model.parameters()).device))
        except ConfigError:
            raise
        except (RuntimeError, AssertionError, ValueError) as error:
            raise ConfigError(
                f'{self.name} does not take {self.in_channels} channels of {view[0]}x{view[1]} pixels ({error}): give it the img_size '
                'of view_size, and in_channels'
            ) from error

    def map_of(self, images: Tensor) -> Tensor:
        """Images (B, C, h, w), normalised -> the last feature map (B, K, rows, columns)."""
        if hasattr(self.model, 'forward_intermediates'):
            return self.model.forward_intermediates(images, indices=1, norm=True, output_fmt='NCHW', intermediates_only=True)[-1]
        outputs = self.model(images)
        features = outputs[-1] if isinstance(outputs, tuple | list) else outputs
        if features.ndim != 4:
            raise ConfigError(f"{self.name} gives no feature map but a tensor {tuple(features.shape)}: set out_type='featmap' in it")
        return features

    def embed(self, images: Tensor) -> Tensor:
        """Images (B, C, h, w), normalised -> features (B, N, target_dim)."""
        return self.map_of(images).flatten(2).transpose(1, 2)

    def assign(self, vectors: Tensor) -> Tensor:
        """Features (B, n, target_dim) -> targets of the same shape."""
        return F.layer_norm(vectors.float(), vectors.shape[-1:]) if self.normalize else vectors


def build_timm(settings: Mapping, in_channels: int) -> nn.Module:
    """A model of timm without weights and without classifier."""
    import timm

    arguments = {key: value for key, value in settings.items() if key not in ('type', 'model_name')}
    name = settings.get('model_name', '')
    if not timm.is_model(name):
        known = nearest(name, timm.list_models())
        raise ConfigError(f'timm has no model {name!r}{known}; give its model_name as in timm.list_models()')
    if arguments.pop('pretrained', False):
        raise ConfigError('FeatureTargets downloads nothing: give the weights as checkpoint=PATH in place of pretrained=True')
    try:
        model = timm.create_model(name, num_classes=0, **{'in_chans': in_channels, **arguments})
    except TypeError as error:
        raise ConfigError(f'timm.create_model({name!r}) refuses its arguments: {error}') from error
    if not hasattr(model, 'forward_intermediates'):
        raise ConfigError(f'{name} gives no feature maps in this version of timm (forward_intermediates): choose another model')
    return model


def load_timm(model: nn.Module, state: StateDict, checkpoint: str | Path):
    """Weights of a timm model in any form that timm itself reads, for this model's sizes; its classifier is left out."""
    adapt = getattr(sys.modules[type(model).__module__], 'checkpoint_filter_fn', None)
    if adapt is not None:
        adapted = adapt(dict(state), model)
        state = adapted.get('model', adapted)
    load_known(model, state, checkpoint)


def build_backbone(settings: Mapping) -> nn.Module:
    """A backbone of mmpretrain's or our registry."""
    settings = dict(settings)
    if 'type' not in settings:
        raise ConfigError("FeatureTargets.model needs a type: 'timm' with a model_name, or a backbone such as 'mmcae.CAEViT'")
    if '.' not in settings['type']:
        settings['type'] = f'mmpretrain.{settings["type"]}'
    return MODELS.build(settings)


def load_backbone(model: nn.Module, state: StateDict, checkpoint: str | Path):
    """Weights of a backbone: of CAEViT from any checkpoint of CAE, of others from a whole model's (`backbone.`) or their own."""
    if hasattr(model, 'fit_state_dict'):
        load_cae_encoder(model, checkpoint)
        return
    inside = {key.removeprefix('backbone.'): value for key, value in state.items() if key.startswith('backbone.')}
    load_known(model, inside or state, checkpoint)


def load_known(model: nn.Module, state: StateDict, checkpoint: str | Path):
    """Load what belongs to the model, which has to be all of it; what else the file has is counted."""
    known = {key: value for key, value in state.items() if key in model.state_dict()}
    if not known:
        raise CheckpointError(f'{checkpoint} holds no {type(model).__name__}: its keys begin with {", ".join(list(state)[:3])}')
    load_strictly(model, known, str(checkpoint), unused=len(state) - len(known))
