"""The kinds of frozen teachers, all with one face: images in, cls and patch features out."""

import sys
from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from mmengine.utils import to_2tuple
from torch import Tensor, nn

from ...checkpoints import StateDict, load_encoder_weights, load_state, load_strictly, read_weights
from ...checkpoints.spec import IMAGENET_MEAN, IMAGENET_STD
from ...registry import MODELS
from ...utils.errors import CheckpointError, ConfigError, nearest
from ..encoders.timm_encoder import layer_of
from .clip import random_tower, read_tower


def build_teacher(model: dict | None, checkpoint: str | Path | None, projected: bool, layers: int) -> 'FrozenEncoder':
    """A frozen encoder with its weights.

    Args:
        model: `dict(type='clip')`: CLIP in the sizes of the checkpoint, which may be OpenAI's released archive, or Hugging Face's folder or
            file; `num_heads` where heads are not 64 wide and no config.json tells, `img_size` for another size than the checkpoint's, to
            which the position table is resized.
            `dict(type='timm', model_name=...)`: any model of timm, with arguments of `timm.create_model`. A backbone in our or mmpretrain's
            registry: `dict(type='mmcae.CAEViT', ...)`, `dict(type='mmpretrain.ResNet', depth=50)`; others than ours have to give a map.
            None: the encoder that the checkpoint describes.
        checkpoint: Local file, or None for random weights.
        projected, layers: See :class:`.teacher.Teacher`.

    Raises:
        CheckpointError, ConfigError: See :class:`.teacher.Teacher`.
    """
    if model is None:
        if checkpoint is None:
            raise ConfigError('Teacher needs a model, or a checkpoint that describes one')
        model = read_weights(checkpoint).encoder_config()
    if not isinstance(model, Mapping):
        raise ConfigError(f"Teacher.model={model!r} must be a dict with a type, such as dict(type='clip')")
    settings = dict(model)
    kind = settings.pop('type', None)
    if kind == 'clip':
        return ClipEncoder(settings, checkpoint, projected, layers)
    if kind == 'timm':
        return TimmTeacher(settings, checkpoint, projected, layers)
    if not kind:
        raise ConfigError("Teacher.model needs a type: 'clip', 'timm' with a model_name, or a backbone such as 'mmcae.CAEViT'")
    if projected:
        raise ConfigError(f'projected=True: {kind} has no head that projects its tokens')
    config = dict(settings, type=kind if '.' in kind else f'mmpretrain.{kind}')
    return OwnEncoder(config, checkpoint, layers) if config['type'].startswith('mmcae.') else MapBackbone(config, checkpoint, layers)


class FrozenEncoder(nn.Module):
    """Images (B, C, h, w), normalised -> features (B, [1 +] N, K): of cls if `has_cls`, then of the patches in raster order.

    Attributes:
        name: For messages.
        mean, std: Of the pixels in [0, 255] as the model was trained.
        img_size: (h, w) that it is made for.
        downsample: Pixels under one patch.
        in_channels: Of the images.
        has_cls: Whether there is a cls token.
    """

    name: str
    mean = IMAGENET_MEAN
    std = IMAGENET_STD
    img_size: tuple[int, int]
    downsample: tuple[int, int]
    in_channels: int = 3
    has_cls = False

    def forward(self, images: Tensor) -> Tensor:
        raise NotImplementedError


class TimmTeacher(FrozenEncoder):
    """Any model of timm that tells its intermediate features: ViTs give tokens, convolutional networks the cells of their last map."""

    def __init__(self, settings: dict, checkpoint: str | Path | None, projected: bool, layers: int):
        super().__init__()
        self.projected, self.layers = projected, layers
        self.model = self.build(dict(settings), projected)
        self.name = type(self.model).__name__
        self.has_cls = getattr(self.model, 'cls_token', None) is not None
        if checkpoint is not None:
            load_timm(self.model, load_state(checkpoint), checkpoint, keep_head=projected)
        self.describe()
        self.in_channels = settings.get('in_chans') or self.model.pretrained_cfg['input_size'][0]

    def build(self, settings: dict, projected: bool) -> nn.Module:
        name = settings.pop('model_name', '')
        if not timm.is_model(name):
            raise ConfigError(
                f'timm has no model {name!r}{nearest(name, timm.list_models())}; give its model_name as in timm.list_models()'
            )
        if settings.pop('pretrained', False):
            raise ConfigError('Teacher downloads nothing: give the weights as checkpoint=PATH in place of pretrained=True')
        try:
            model = timm.create_model(name, **({'num_classes': 0} | settings if not projected else settings))
        except (TypeError, AssertionError, ValueError, RuntimeError) as error:
            raise ConfigError(f'timm.create_model({name!r}) refuses its arguments: {str(error).splitlines()[0]}') from error
        if not hasattr(model, 'forward_intermediates'):
            raise ConfigError(f'{name} gives no feature maps in this version of timm (forward_intermediates): choose another model')
        if self.layers > 1 and self.layers > len(getattr(model, 'blocks', ())):
            raise ConfigError(f'Teacher: layers={self.layers}, but {name} has {len(getattr(model, "blocks", ()))} blocks to average')
        if projected and not (hasattr(model, 'num_prefix_tokens') and isinstance(getattr(model, 'head', None), nn.Linear)):
            raise ConfigError(f'projected=True: {name} has no head that projects its tokens')
        return model

    def describe(self):
        """Read off the model how its images are to be prepared."""
        config = self.model.pretrained_cfg
        self.mean, self.std = (tuple(255 * value for value in config[name]) for name in ('mean', 'std'))
        embedding = getattr(self.model, 'patch_embed', None)
        self.img_size = to_2tuple(getattr(embedding, 'img_size', None) or config['input_size'][1:])
        # Only plain ViTs keep the patches that they begin with.
        patch, stride = to_2tuple(getattr(embedding, 'patch_size', 0)), self.model.feature_info[-1]['reduction']
        self.downsample = patch if max(patch) == stride else to_2tuple(stride)

    def forward(self, images: Tensor) -> Tensor:
        """See :class:`FrozenEncoder`."""
        try:
            if not hasattr(self.model, 'num_prefix_tokens'):
                found = self.model.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)[-1]
                return found.flatten(2).transpose(1, 2)
            prefixed = dict(return_prefix_tokens=True) if self.model.num_prefix_tokens else {}
            found = self.model.forward_intermediates(
                images, indices=self.layers, norm=True, output_fmt='NLC', intermediates_only=True, **prefixed
            )
        except (AssertionError, RuntimeError, TypeError) as error:
            size = 'x'.join(map(str, images.shape[-2:]))
            raise ConfigError(
                f'{self.name} gives no features for images of {size} pixels ({str(error).splitlines()[0]}): '
                + ('choose another model' if images.shape[-2:] == self.img_size else 'give it img_size, or dynamic_img_size=True')
            ) from error
        if self.model.num_prefix_tokens:
            found = [torch.cat((prefix[:, : int(self.has_cls)], patches), dim=1) for patches, prefix in found]
        tokens = sum(found) / len(found)
        return self.model.head(tokens) if self.projected else tokens


class ClipEncoder(TimmTeacher):
    """The image tower of CLIP (arXiv 2103.00020), whose head is the projection into the space of images and texts."""

    def __init__(self, settings: dict, checkpoint: str | Path | None, projected: bool, layers: int):
        tower = random_tower() if checkpoint is None else read_tower(checkpoint)
        settings = {**tower.arguments, **settings, 'model_name': tower.arguments['model_name']}
        has_head = settings['num_classes'] > 0
        if projected and not has_head:
            raise CheckpointError(
                f'projected=True, but {checkpoint} has no visual_projection, as a CLIPVisionModel: give the file of a CLIPModel or a '
                'CLIPVisionModelWithProjection, or projected=False'
            )
        super().__init__({name: layer_of(value, name) for name, value in settings.items()}, None, has_head, layers)
        self.projected, self.mean, self.std = projected, tower.mean, tower.std
        if checkpoint is not None:
            grid = tuple(size // patch for size, patch in zip(self.img_size, self.downsample, strict=True))
            load_timm(self.model, tower.on_grid(grid), checkpoint, keep_head=has_head)


class OwnEncoder(FrozenEncoder):
    """One of our encoders."""

    def __init__(self, config: dict, checkpoint: str | Path | None, layers: int):
        super().__init__()
        self.model = MODELS.build(dict(config, out_type='raw', out_indices=tuple(range(-layers, 0)), init_cfg=None))
        self.name = type(self.model).__name__
        if checkpoint is not None:
            load_encoder_weights(self.model, checkpoint)
        spec = self.model.spec
        self.img_size, self.downsample, self.in_channels = spec.img_size, spec.patch_size, spec.in_channels
        self.has_cls, self.prefix = self.model.has_cls, spec.num_prefix_tokens
        if spec.view:
            self.mean, self.std = spec.view.mean, spec.view.std

    def forward(self, images: Tensor) -> Tensor:
        """See :class:`FrozenEncoder`."""
        *earlier, last = self.model(images)  # the last has been normalised
        tokens = (sum(map(self.model.norm, earlier)) + last) / (len(earlier) + 1)
        return torch.cat((tokens[:, : int(self.has_cls)], tokens[:, self.prefix :]), dim=1)


class MapBackbone(FrozenEncoder):
    """A backbone of mmpretrain that gives a feature map."""

    def __init__(self, config: dict, checkpoint: str | Path | None, layers: int):
        super().__init__()
        if layers > 1:
            raise ConfigError(f'layers={layers}: {config["type"]} gives its last map alone')
        self.model = MODELS.build(config)
        self.name = type(self.model).__name__
        if checkpoint is not None:
            state = load_state(checkpoint)
            inside = {key.removeprefix('backbone.'): value for key, value in state.items() if key.startswith('backbone.')}
            load_known(self.model, inside or state, checkpoint)
        self.img_size = to_2tuple(config.get('img_size', 224))
        self.in_channels = config.get('in_channels', 3)
        with torch.no_grad():
            rows, columns = self.map_of(torch.zeros(1, self.in_channels, *self.img_size)).shape[-2:]
        self.downsample = (self.img_size[0] // rows, self.img_size[1] // columns)

    def map_of(self, images: Tensor) -> Tensor:
        """The last feature map (B, K, rows, columns)."""
        self.model.eval()  # of mmpretrain, it returns nothing
        outputs = self.model(images)
        features = outputs[-1] if isinstance(outputs, tuple | list) else outputs
        if features.ndim != 4:
            raise ConfigError(f"{self.name} gives no feature map but a tensor {tuple(features.shape)}: set out_type='featmap' in it")
        return features

    def forward(self, images: Tensor) -> Tensor:
        """See :class:`FrozenEncoder`."""
        return self.map_of(images).flatten(2).transpose(1, 2)


# ---------------------------------------------------------------- weights


def load_timm(model: nn.Module, state: StateDict, checkpoint: str | Path, keep_head: bool = False):
    """Weights of a timm model in any form that timm itself reads, for this model's sizes; its classifier is left out unless kept."""
    adapt = getattr(sys.modules[type(model).__module__], 'checkpoint_filter_fn', None)
    if adapt is not None:
        adapted = adapt(dict(state), model)
        state = adapted.get('model', adapted)
    if keep_head and 'head.weight' not in state:
        raise CheckpointError(f'projected=True, but {checkpoint} has no head that projects the tokens')
    load_known(model, state, checkpoint)


def load_known(model: nn.Module, state: StateDict, checkpoint: str | Path):
    """Load what belongs to the model's parts, which has to be all of them; what the file has of other parts is counted."""
    own = model.state_dict()
    parts = {key.split('.')[0] for key in own}
    known = {key: value for key, value in state.items() if key.split('.')[0] in parts}
    if not own.keys() & known.keys():
        raise CheckpointError(
            f'{checkpoint} holds no {type(model).__name__}: its keys begin with {", ".join(list(state)[:3])}; leave the model out, or '
            'give a mmcae.TimmEncoder, where load_encoder reads the file'
        )
    remedy = 'Give the model the arguments that the checkpoint is of'
    load_strictly(model, known, str(checkpoint), unused=len(state) - len(known), remedy=remedy)
