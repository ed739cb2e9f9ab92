"""Configs of the three kinds of tasks for one encoder, as texts: what is other than in the packaged recipes follows from its spec."""

from pathlib import Path

from mmengine.utils import to_2tuple

from ..checkpoints import EncoderSpec
from ..utils.configs.loading import load_config
from ..utils.packaged import CONFIGS
from .downstream import config_text, text_on

RECIPES = dict(
    classification='linear_probe/linear_vit-base-p16_cae_32xb512-amp-90e_in1k.py',
    detection='mask_rcnn/mask-rcnn_vit-base-p16_cae_16xb2-amp-1x_coco.py',
    segmentation='upernet/upernet_vit-base-p16_cae-1600e_8xb2-amp-160k_ade20k-512x512.py',
)
LIBRARIES = dict(classification='mmpretrain', detection='mmdet', segmentation='mmsegmentation')
MAPS = 4  # of the pyramid


def snippet(task: str, spec: EncoderSpec, checkpoint: str | Path) -> str:
    """The text of a config that trains a task on an encoder: a packaged recipe, and what is other for it.

    Args:
        task: One of `RECIPES`.
        spec: The encoder.
        checkpoint: Its file.
    """
    base = CONFIGS / RECIPES[task]
    title = f'{task} with {LIBRARIES[task]}, on {Path(checkpoint).name}'
    if task == 'classification':
        return config_text(base, base, load_config(base), spec, str(checkpoint), title)
    settings = (detection if task == 'detection' else segmentation)(spec, str(checkpoint), load_config(base))
    return text_on(base, settings, title)


def detection(spec: EncoderSpec, checkpoint: str, cfg) -> dict:
    """What Mask R-CNN sets otherwise."""
    patch, width = spec.patch_size[0], spec.embed_dims
    strides = [whole(patch * scale) for scale in (0.25, 0.5, 1, 2, 4)]
    size = tuple(round(side / (2 * patch)) * 2 * patch for side in to_2tuple(cfg.model.backbone.img_size))
    model = dict(
        data_preprocessor=normalised(spec) | dict(pad_size_divisor=2 * patch),
        backbone=dense(spec, checkpoint, size, cfg),
        neck=[dict(cfg.model.neck[0], in_channels=width), dict(cfg.model.neck[1], in_channels=[width] * MAPS)],
        rpn_head=dict(anchor_generator=dict(strides=strides)),
        roi_head={f'{kind}_roi_extractor': dict(featmap_strides=strides[:MAPS]) for kind in ('bbox', 'mask')},
    )
    return dict(model=model)


def segmentation(spec: EncoderSpec, checkpoint: str, cfg) -> dict:
    """What UperNet sets otherwise, its crops included."""
    patch, width = spec.patch_size[0], spec.embed_dims
    side = round(cfg.model.data_preprocessor.size[0] / (2 * patch)) * 2 * patch
    size = (side, side)
    model = dict(
        data_preprocessor=normalised(spec) | dict(size=size, test_cfg=dict(size=size)),
        backbone=dense(spec, checkpoint, size, cfg),
        neck=dict(in_channels=width),
        decode_head=dict(in_channels=[width] * MAPS, channels=width),
        auxiliary_head=dict(in_channels=width),
        test_cfg=dict(crop_size=size, stride=tuple(2 * side // 3 for side in size)),
    )
    steps = [dict(step, crop_size=size) if step.type == 'RandomCrop' else dict(step) for step in cfg.train_dataloader.dataset.pipeline]
    return dict(model=model, train_dataloader=dict(dataset=dict(pipeline=steps)))


def dense(spec: EncoderSpec, checkpoint: str, size: tuple[int, int], cfg) -> dict:
    """The encoder as a backbone that gives four maps."""
    depth, config = spec.num_layers, {'_delete_': True, **spec.config()}
    own = cfg.model.backbone
    config |= dict(
        img_size=size,
        out_indices=tuple(-(-depth * (number + 1) // MAPS) - 1 for number in range(MAPS)),
        out_type='featmap',
        final_norm=False,
        drop_path_rate=own.drop_path_rate,
        init_cfg=dict(own.get('init_cfg', {}), checkpoint=checkpoint),
    )
    if own.get('use_rel_pos_bias') and spec.type == 'CAEViT':
        config['use_rel_pos_bias'] = True
    return config


def normalised(spec: EncoderSpec) -> dict:
    """Mean and standard deviation of the pixels, where the encoder's are known."""
    return dict(mean=list(spec.view.mean), std=list(spec.view.std)) if spec.view else {}


def whole(stride: float) -> float | int:
    """A stride, as an integer where it is one."""
    return int(stride) if stride == int(stride) else stride
