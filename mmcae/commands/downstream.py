"""From a recipe for some encoder to the config for another one: sizes, view and weights come from the encoder's spec."""

import pprint
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.utils import to_2tuple

from ..checkpoints import EncoderSpec, ViewSpec
from ..checkpoints.spec import SMALL, default_crop
from ..registry import MODELS
from ..utils.errors import ConfigError
from ..utils.packaged import CONFIGS, SCOPE
from .dense_settings import dense_settings

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader', 'test_cfg')
CROPS = {'RandomResizedCrop': 'scale', 'MAERandomResizedCrop': 'size', 'CenterCrop': 'crop_size'}  # transform -> its argument of the size
DECIDED = ('out_type', 'out_indices', 'frozen_stages', 'drop_path_rate', 'with_cp')  # arguments of the backbone that a protocol chooses
RGB_ONLY = ('NumpyToPIL', 'RandAugment', 'RandomErasing')


def config_text(path: Path, base: Path, cfg: Config, spec: EncoderSpec, checkpoint: str, title: str) -> str:
    """The text of a config that builds on a packaged one and says what is other for an encoder.

    Args:
        path: What to call it in messages.
        base: The packaged config.
        cfg: Its content.
        spec: The encoder.
        checkpoint: Its file.
        title: The first line.

    Raises:
        ConfigError: The recipe cannot be for such images.
    """
    settings_of = settings_for if cfg.model.type.endswith('ImageClassifier') else dense_settings
    settings = settings_of(cfg, spec, checkpoint, str(path))
    lines = [f'# {title}', f"_base_ = ['{SCOPE}{base.relative_to(CONFIGS).as_posix()}']"]
    lines += [f'{name} = {pprint.pformat(value, width=120, sort_dicts=False)}' for name, value in settings.items()]
    return '\n'.join(lines) + '\n'


def settings_for(cfg: Config, spec: EncoderSpec, checkpoint: str, origin: str) -> dict:
    """What a recipe of classification sets otherwise for an encoder.

    The backbone gets the encoder's sizes and the size of its view; what a protocol decides (the kind of output, which blocks are frozen,
    drop path) stays. Neck and head get its width, the attention of an attentive head its number of heads. Images are shown by the encoder's
    view where that is another than the recipe's, and normalised by it. Of images as small as the digits nothing is cut off.

    Args:
        cfg: The recipe.
        spec: The encoder.
        checkpoint: Its file.
        origin: What to call the config in messages.

    Returns:
        Settings by their names at the top level, nested as in a config.

    Raises:
        ConfigError: The recipe cannot be for images of these channels.
    """
    own, view = cfg.model.backbone, spec.view or ViewSpec(size=spec.img_size)
    if min(to_2tuple(own.img_size)) < SMALL:
        view = replace(view, crop_pct=1.0)
    backbone = {'_delete_': True, **spec.config()}
    if tuple(view.size) != spec.img_size:
        backbone['img_size'] = tuple(view.size)
    if spec.type == 'CAEViT':
        backbone['use_rel_pos_bias'] = spec.use_rel_pos_bias or own.get('use_rel_pos_bias', False)
        backbone['layer_scale_init_value'] = (own.get('layer_scale_init_value') or 1.0) if spec.layer_scale else 0
    backbone |= {name: own[name] for name in DECIDED if name in own}
    if own.get('out_type', 'cls_token') == 'cls_token' and not has_cls(spec):
        backbone['out_type'] = 'avg_featmap'
    if own.get('frozen_stages', -1) > 0:
        backbone['frozen_stages'] = spec.num_layers
    if own.get('init_cfg'):
        backbone['init_cfg'] = dict(own.init_cfg, checkpoint=str(checkpoint))
    model = dict(backbone=backbone)
    if cfg.model.get('neck'):
        model['neck'] = dict(input_features=spec.embed_dims)
    if cfg.model.get('head'):
        heads = dict(num_heads=spec.num_heads) if 'num_heads' in cfg.model.head else {}
        model['head'] = dict(in_channels=spec.embed_dims, **heads)
    settings = dict(model=model)
    if spec.view or spec.in_channels != 3:
        if spec.view is None:
            raise ConfigError(f'{origin}: nothing tells how images of {spec.in_channels} channels are normalised for {checkpoint}')
        settings['data_preprocessor'] = dict(mean=list(view.mean), std=list(view.std), to_rgb=spec.in_channels == 3)
    for name in LOADERS:
        changes = pipelines(cfg.get(name), view, spec.in_channels, native(own, view), origin)
        if changes:
            settings[name] = changes
    return settings


def has_cls(spec: EncoderSpec) -> bool:
    """Whether an encoder has a cls token."""
    with torch.device('meta'):
        return MODELS.build(spec.config()).has_cls


def native(backbone: Mapping, view: ViewSpec) -> bool:
    """Whether a recipe's own view is that of the encoder."""
    return tuple(to_2tuple(backbone.img_size)) == view.size and view.crop_pct == default_crop(view.size) and view.interpolation == 'bicubic'


def pipelines(part, view: ViewSpec, channels: int, as_it_is: bool, origin: str) -> dict:
    """The pipelines below a part of a config that are others for a view, nested as they are there."""
    changes = {}
    if not isinstance(part, Mapping):
        return changes
    for name, value in part.items():
        if name == 'pipeline':
            changed = [dict(step) for step in value] if as_it_is else resized(value, view)
            changed = changed if channels == 3 else with_channels(changed, channels, origin)
            if changed != [dict(step) for step in value]:
                changes[name] = changed
        elif below := pipelines(value, view, channels, as_it_is, origin):
            changes[name] = below
    return changes


def resized(pipeline, view: ViewSpec) -> list[dict]:
    """A pipeline that makes images of a view's size: its random crops, or its resizing and central crop, or the view where it has none."""
    show = dict(type='mmcae.EvaluationView', size=tuple(view.size), crop=view.crop_pct, interpolation=view.interpolation)
    steps, sized = [], False
    for step in map(dict, pipeline):
        kind = step['type']
        if kind == 'CenterCrop':
            steps.append(show)
        elif kind in CROPS:
            square = view.size[0] == view.size[1]
            steps.append(dict(step, **{CROPS[kind]: view.size[0] if square else tuple(view.size)}))
        elif kind != 'ResizeEdge':
            if kind == 'PackInputs' and not sized:
                steps.append(show)
            steps.append(step)
        sized = sized or kind in CROPS
    return steps


def with_channels(pipeline: list[dict], channels: int, origin: str) -> list[dict]:
    """A pipeline that reads images of other than three channels."""
    for step in pipeline:
        if step['type'] in RGB_ONLY:
            raise ConfigError(f'{origin}: {step["type"]} of this recipe works on RGB, and the encoder reads {channels} channels')
    return [dict(type='mmcae.LoadImage', channels=channels) if step['type'] == 'LoadImageFromFile' else step for step in pipeline]
