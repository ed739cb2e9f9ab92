"""What the segmentation tests share: the real base recipe with a small encoder, and a data set of a few images in ADE20K's layout."""

import functools

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from PIL import Image

from mmcae.models import CAEViT
from mmcae.registry import MODELS
from mmcae.utils.configs.loading import load_config

RECIPE = 'configs/upernet/upernet_vit-base-p16_cae-1600e_8xb2-amp-160k_ade20k-512x512.py'
ENCODER = dict(embed_dims=32, num_layers=4, num_heads=4)
CLASSES = 5
# What makes the recipe small: 96x96 crops of 6 x 6 patches.
SIDE = 96
SHRUNK = {
    'model.backbone.arch': ENCODER,
    'model.backbone.out_indices': (0, 1, 2, 3),
    'model.backbone.img_size': (SIDE, SIDE),
    'model.data_preprocessor.size': (SIDE, SIDE),
    'model.data_preprocessor.test_cfg.size': (SIDE, SIDE),
    'model.neck.in_channels': 32,
    'model.decode_head.in_channels': [32] * 4,
    'model.decode_head.channels': 16,
    'model.decode_head.num_classes': CLASSES,
    'model.auxiliary_head.in_channels': 32,
    'model.auxiliary_head.channels': 8,
    'model.auxiliary_head.num_classes': CLASSES,
    'model.test_cfg.crop_size': (SIDE, SIDE),
    'model.test_cfg.stride': (64, 64),
}


@pytest.fixture
def pretrained(tmp_path):
    """The checkpoint of a small encoder without relative position bias, made for images of 64x64 pixels: a grid of 4 x 4 patches."""
    encoder = CAEViT(ENCODER, img_size=64)
    path = tmp_path / 'pretrained.pth'
    torch.save({f'backbone.{name}': value for name, value in encoder.state_dict().items()}, path)
    return path


@pytest.fixture
def small_recipe(repository, pretrained):
    """The base recipe's config with a small encoder, and further changes by dotted key."""

    def make(**changes):
        cfg = load_config(repository / RECIPE)
        small = SHRUNK | {'model.backbone.init_cfg.checkpoint': str(pretrained)}
        for key, value in (small | {key.replace('__', '.'): value for key, value in changes.items()}).items():
            *path, last = key.split('.')
            functools.reduce(getattr, path, cfg)[last] = value
        return cfg

    return make


@pytest.fixture
def segmentor(small_recipe):
    """The small segmentor, with its pretrained weights and ordinary batch norm, as on one device."""

    def build(**changes):
        from mmengine.model import revert_sync_batchnorm

        cfg = small_recipe(**changes)
        init_default_scope('mmseg')
        torch.manual_seed(0)
        model = MODELS.build(cfg.model)
        model.init_weights()
        return revert_sync_batchnorm(model)

    return build


def draw_scene(random, height, width):
    """A bright square on a dark ground, and its label map: 1 for the ground, 2 for the square, as ADE20K counts."""
    image = random.integers(0, 60, (height, width, 3), dtype=np.uint8)
    labels = np.ones((height, width), np.uint8)
    top, left = random.integers(0, height // 2), random.integers(0, width // 2)
    area = slice(top, top + height // 2), slice(left, left + width // 2)
    image[area] += 150
    labels[area] = 2
    return image, labels


@pytest.fixture
def scenes(tmp_path):
    """Write images and label maps in ADE20K's layout; returns the root."""

    def make(count=8, height=100, width=120, name='scenes'):
        random = np.random.default_rng(0)
        root = tmp_path / name
        for split in ('training', 'validation'):
            for kind in ('images', 'annotations'):
                (root / kind / split).mkdir(parents=True)
            for i in range(count):
                image, labels = draw_scene(random, height, width)
                Image.fromarray(image).save(root / 'images' / split / f'{i}.jpg')
                Image.fromarray(labels).save(root / 'annotations' / split / f'{i}.png')
        return root

    return make
