"""What the detection tests share: the real recipes with a small encoder, and a data set of a few images in COCO's format."""

import functools
import json

import numpy as np
import pytest
import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from PIL import Image

from mmcae.models import CAEViT
from mmcae.registry import MODELS
from mmcae.utils.configs.loading import load_config

MASK_RCNN = 'configs/mask_rcnn/mask-rcnn_vit-base-p16_cae_16xb2-amp-1x_coco.py'
CASCADE = 'configs/cascade_mask_rcnn/cascade-mask-rcnn_vit-base-p16_cae_16xb2-amp-1x_coco.py'
VITDET = 'configs/mask_rcnn/mask-rcnn_vitdet-base-p16_cae_32xb2-amp-lsj-1024-100e_coco.py'
VITDET_CASCADE = 'configs/cascade_mask_rcnn/cascade-mask-rcnn_vitdet-base-p16_cae_32xb2-amp-lsj-1024-100e_coco.py'
ENCODER = dict(embed_dims=32, num_layers=4, num_heads=4)
CLASSES = ('cat', 'dog')
SHRUNK = {
    'model.backbone.arch': ENCODER,
    'model.rpn_head.in_channels': 16,
    'model.rpn_head.feat_channels': 16,
    'model.roi_head.bbox_roi_extractor.out_channels': 16,
    'model.roi_head.mask_roi_extractor.out_channels': 16,
    'model.roi_head.mask_head.in_channels': 16,
    'model.roi_head.mask_head.conv_out_channels': 16,
    'model.roi_head.mask_head.num_classes': len(CLASSES),
    'model.train_cfg.rpn_proposal.max_per_img': 50,
    'model.test_cfg.rpn.max_per_img': 50,
}
SHRUNK_PAPER = {
    'model.backbone.img_size': (96, 160),
    'model.backbone.out_indices': (0, 1, 2, 3),
    'model.neck.0.in_channels': 32,
    'model.neck.1.in_channels': [32] * 4,
    'model.neck.1.out_channels': 16,
}
# 96x96 instead of 1024x1024, and windows of 4 patches, which 6 x 6 patches stick out of as 64 x 64 do of windows of 14.
SHRUNK_VITDET = {
    'model.backbone.img_size': (96, 96),
    'model.backbone.out_indices': (3,),
    'model.backbone.window_size': 4,
    'model.backbone.global_blocks': (1, 3),
    'model.data_preprocessor.pad_size_divisor': 96,
    'model.neck.in_channels': 32,
    'model.neck.out_channels': 16,
}
SHRUNK_BOX_HEAD = dict(in_channels=16, conv_out_channels=16, fc_out_channels=32, num_classes=len(CLASSES))


def change(cfg, key, value):
    """Set a value of a config by its dotted key; numbers pick from lists."""
    *path, last = [int(part) if part.isdigit() else part for part in key.split('.')]
    functools.reduce(lambda node, part: node[part], path, cfg)[last] = value


@pytest.fixture
def pretrained(tmp_path):
    """The checkpoint of a small encoder made for images of 64x64 pixels: a grid of 4 x 4 patches."""
    path = tmp_path / 'pretrained.pth'
    torch.save({f'backbone.{name}': value for name, value in CAEViT(ENCODER, img_size=64).state_dict().items()}, path)
    return path


@pytest.fixture
def small_recipe(repository, pretrained):
    """A recipe's config with a small encoder and narrow heads, and further changes by dotted key (a double underscore is a dot)."""

    def make(recipe=MASK_RCNN, **changes):
        cfg = load_config(repository / recipe)
        heads = cfg.model.roi_head.bbox_head
        for head in heads if isinstance(heads, list) else [heads]:
            head.update(SHRUNK_BOX_HEAD)
        small = SHRUNK | (SHRUNK_VITDET if 'vitdet' in recipe else SHRUNK_PAPER) | {'model.backbone.init_cfg.checkpoint': str(pretrained)}
        for key, value in (small | {key.replace('__', '.'): value for key, value in changes.items()}).items():
            change(cfg, key, value)
        return cfg

    return make


@pytest.fixture
def detector(small_recipe):
    """The small detector with its pretrained weights, and ordinary batch norm as on one device."""

    def build(recipe=MASK_RCNN, **changes):
        cfg = small_recipe(recipe, **changes)
        init_default_scope('mmdet')
        torch.manual_seed(0)
        model = MODELS.build(cfg.model)
        model.init_weights()
        return revert_sync_batchnorm(model)

    return build


@pytest.fixture
def batch():
    """What a dataloader gives: images of (height, width) pixels, each with the same boxes and their insides as masks."""
    return make_batch


def make_batch(*sizes, boxes=((8.0, 8.0, 40.0, 36.0),)):
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    inputs, samples = [], []
    for height, width in sizes:
        masks = np.zeros((len(boxes), height, width), np.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
            mask[int(top) : int(bottom), int(left) : int(right)] = 1
        sample = DetDataSample(metainfo=dict(img_shape=(height, width), ori_shape=(height, width), scale_factor=(1.0, 1.0), img_id=0))
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            labels=torch.arange(len(boxes)) % len(CLASSES),
            masks=BitmapMasks(masks, height, width),
        )
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4))
        inputs.append(torch.randint(0, 256, (3, height, width), dtype=torch.uint8))
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)


@pytest.fixture
def losses():
    """The losses of a detector on a batch, by name and as one number."""

    def compute(model, data):
        data = model.data_preprocessor(data, training=True)
        return model.parse_losses(model(**data, mode='loss'))

    return compute


def annotation(number, image, box=(4, 4, 24, 20), category=1, **changes):
    left, top, width, height = box
    corners = [left, top, left + width, top, left + width, top + height, left, top + height]
    found = dict(id=number, image_id=image, category_id=category, bbox=list(box), area=width * height, iscrowd=0, segmentation=[corners])
    return {key: value for key, value in {**found, **changes}.items() if value is not None}


@pytest.fixture
def coco_object():
    """One object of a COCO file: `coco_object(number, image, box=..., category=1, area=None)`; None leaves an entry out."""
    return annotation


@pytest.fixture
def coco(tmp_path):
    """Write images and an annotation file in COCO's format; returns the folder, with `annotations.json` and `images/`.

    Every image has two bright rectangles of different colours on a dark ground, a cat and a dog.
    """

    def make(count=8, size=(64, 80), annotations=None, categories=CLASSES, **changes):
        random = np.random.default_rng(0)
        height, width = size
        (tmp_path / 'images').mkdir()
        images, objects = [], []
        for i in range(count):
            pixels = random.integers(0, 60, (height, width, 3), dtype=np.uint8)
            for category, left in enumerate((0, width // 2), 1):
                box = (left + int(random.integers(2, 8)), int(random.integers(2, 12)), max(width // 2 - 12, 1), max(height // 2, 1))
                pixels[box[1] : box[1] + box[3], box[0] : box[0] + box[2], category] += 180
                objects.append(annotation(len(objects) + 1, i, box, category))
            Image.fromarray(pixels).save(tmp_path / f'images/{i}.png')
            images.append(dict(id=i, file_name=f'{i}.png', height=height, width=width))
        content = dict(
            images=images,
            annotations=objects if annotations is None else annotations,
            categories=[dict(id=i, name=name) for i, name in enumerate(categories, 1)],
        )
        content = {key: value for key, value in {**content, **changes}.items() if value is not None}
        (tmp_path / 'annotations.json').write_text(json.dumps(content))
        return tmp_path

    return make
