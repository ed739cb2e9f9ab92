"""What recipes of detection and segmentation set otherwise for an encoder."""

import math

from mmengine.utils import to_2tuple

from ..checkpoints import EncoderSpec
from ..checkpoints.spec import SMALL
from ..utils.errors import ConfigError


def dense_settings(cfg, spec: EncoderSpec, checkpoint: str, origin: str) -> dict:
    """Settings by their names at the top level, nested as in a config.

    The backbone gets the encoder's sizes and gives as many maps as that of the recipe, after blocks at equal distances; neck and heads get
    its width, and strides and crops follow from its patches. Images are normalised by the encoder's view.

    Args:
        cfg: A recipe of Mask R-CNN or UperNet.
        spec: The encoder.
        checkpoint: Its file.
        origin: What to call the config in messages.

    Raises:
        ConfigError: The encoder does not read RGB.
    """
    if spec.in_channels != 3:
        raise ConfigError(f'{origin}: the images of this recipe are RGB, and the encoder in {checkpoint} reads {spec.in_channels} channels')
    return (detection if cfg.default_scope == 'mmdet' else segmentation)(cfg, spec, checkpoint)


def detection(cfg, spec: EncoderSpec, checkpoint: str) -> dict:
    """What Mask R-CNN sets otherwise."""
    patch, width, heads = spec.patch_size[0], spec.embed_dims, cfg.model.roi_head
    pyramid, fpn = cfg.model.neck
    strides = [patch / factor for factor in pyramid.get('factors', (4, 2, 1, 0.5))]
    while len(strides) < len(cfg.model.rpn_head.anchor_generator.strides):
        strides.append(2 * strides[-1])
    strides = [int(stride) if stride == int(stride) else stride for stride in strides]
    size = tuple(round(side / (2 * patch)) * 2 * patch for side in to_2tuple(cfg.model.backbone.img_size))
    extractors = [f'{kind}_roi_extractor' for kind in ('bbox', 'mask')]
    model = dict(
        data_preprocessor=normalised(spec) | dict(pad_size_divisor=2 * patch),
        backbone=backbone(cfg, spec, checkpoint, size),
        neck=[dict(pyramid, in_channels=width), dict(fpn, in_channels=[width] * len(fpn.in_channels))],
        rpn_head=dict(anchor_generator=dict(strides=strides)),
        roi_head={name: dict(featmap_strides=strides[: len(heads[name].featmap_strides)]) for name in extractors},
    )
    return dict(model=model)


def segmentation(cfg, spec: EncoderSpec, checkpoint: str) -> dict:
    """What UperNet sets otherwise; where images are cropped, crops become a multiple of two patches, else they are padded to one."""
    patch, width, head = spec.patch_size[0], spec.embed_dims, cfg.model.decode_head
    pipeline = cfg.train_dataloader.dataset.pipeline
    crops = any(step.type == 'RandomCrop' for step in pipeline)
    side = (round if crops else math.ceil)(cfg.model.data_preprocessor.size[0] / (2 * patch)) * 2 * patch
    size = (side, side)
    model = dict(
        data_preprocessor=normalised(spec) | dict(size=size, test_cfg=dict(size=size) if crops else dict(size_divisor=2 * patch)),
        backbone=backbone(cfg, spec, checkpoint, size),
        neck=dict(in_channels=width),
        decode_head=dict(in_channels=[width] * len(head.in_channels)),
    )
    if head.channels == head.in_channels[0]:
        model['decode_head']['channels'] = width
    if cfg.model.get('auxiliary_head'):
        model['auxiliary_head'] = dict(in_channels=width)
    if not crops:
        return dict(model=model)
    model['test_cfg'] = dict(crop_size=size, stride=tuple(2 * side // 3 for side in size))
    steps = [dict(step, crop_size=size) if step.type == 'RandomCrop' else dict(step) for step in pipeline]
    return dict(model=model, train_dataloader=dict(dataset=dict(pipeline=steps)))


def backbone(cfg, spec: EncoderSpec, checkpoint: str, size: tuple[int, int]) -> dict:
    """The encoder as a backbone that gives maps; `size` is what its positions are resized to, kept where the recipe's images are small."""
    own, config = cfg.model.backbone, {'_delete_': True, **spec.config()}
    maps = len(own.out_indices)
    config |= dict(
        img_size=spec.img_size if min(to_2tuple(own.img_size)) < SMALL else size,
        out_indices=tuple(-(-spec.num_layers * (number + 1) // maps) - 1 for number in range(maps)),
        out_type='featmap',
        final_norm=False,
        drop_path_rate=own.get('drop_path_rate', 0.0),
        init_cfg=dict(own.get('init_cfg') or dict(type='Pretrained'), checkpoint=checkpoint),
    )
    if own.get('use_rel_pos_bias') and spec.type == 'CAEViT':
        config['use_rel_pos_bias'] = True
    return config


def normalised(spec: EncoderSpec) -> dict:
    """Mean and standard deviation of the pixels, where the encoder's are known."""
    return dict(mean=list(spec.view.mean), std=list(spec.view.std)) if spec.view else {}
