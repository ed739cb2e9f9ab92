"""Small configs for the tests that run tools/train.py and tools/test.py as processes."""

import json
from textwrap import dedent

import numpy as np
import pytest
from PIL import Image

RUNTIME = """
train_cfg = dict(by_epoch=True, max_epochs=2)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3))
param_scheduler = dict(type='mmcae.WarmupCosineLR', warmup=0, begin=0, end=10)
auto_scale_lr = dict(base_batch_size=8)
randomness = dict(seed=0)
default_hooks = dict(logger=dict(type='LoggerHook', interval=1))
"""


@pytest.fixture
def write_config(tmp_path):
    """Write a config file: `write_config('name.py', text, folder=...)`, {names} in braces filled in; returns its path."""

    def write(name, text, **values):
        for key, value in values.items():
            text = text.replace('{' + key + '}', str(value))
        path = tmp_path / name
        path.write_text(dedent(text) + RUNTIME)
        return path

    return write


@pytest.fixture
def classification_config(write_config, image_folder):
    """A tiny CAEViT on two classes of eight images; it has a batch norm to be synchronised."""
    return write_config(
        'tiny_classifier.py',
        """
        default_scope = 'mmpretrain'
        model = dict(
            type='ImageClassifier',
            backbone=dict(type='mmcae.CAEViT', arch=dict(embed_dims=16, num_layers=2, num_heads=2), img_size=16, patch_size=8),
            neck=dict(type='LinearNeck', in_channels=16, out_channels=16, norm_cfg=dict(type='SyncBN')),
            head=dict(type='LinearClsHead', num_classes=2, in_channels=16),
            data_preprocessor=dict(num_classes=2, mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True),
        )
        train_dataloader = dict(
            batch_size=4,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=True),
            dataset=dict(
                type='CustomDataset',
                data_root='{data}',
                pipeline=[dict(type='LoadImageFromFile'), dict(type='RandomFlip', prob=0.5), dict(type='PackInputs')],
            ),
        )
        val_dataloader = dict(
            batch_size=4,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dict(
                type='CustomDataset', data_root='{data}', pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')]
            ),
        )
        test_dataloader = val_dataloader
        val_evaluator = dict(type='Accuracy', topk=1)
        test_evaluator = val_evaluator
        """,
        data=image_folder(count=4, size=(16, 16)),
    )


@pytest.fixture
def detection_config(write_config, tmp_path):
    """A tiny RetinaNet on four images with one square each."""
    folder = tmp_path / 'detection'
    folder.mkdir()
    random = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(4):
        pixels = random.integers(0, 80, (64, 64, 3), dtype=np.uint8)
        x, y = random.integers(4, 30, 2).tolist()
        pixels[y : y + 24, x : x + 24] = 220
        Image.fromarray(pixels).save(folder / f'{number}.png')
        images.append(dict(id=number, file_name=f'{number}.png', height=64, width=64))
        annotations.append(dict(id=number + 1, image_id=number, category_id=1, bbox=[x, y, 24, 24], area=576, iscrowd=0))
    content = dict(images=images, annotations=annotations, categories=[dict(id=1, name='square')])
    (folder / 'annotations.json').write_text(json.dumps(content))
    return write_config(
        'tiny_detector.py',
        """
        default_scope = 'mmdet'
        model = dict(
            type='RetinaNet',
            data_preprocessor=dict(type='DetDataPreprocessor', mean=[127.5] * 3, std=[127.5] * 3, pad_size_divisor=32),
            backbone=dict(type='ResNet', depth=18, base_channels=8, norm_eval=False),
            neck=dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=16, num_outs=5),
            bbox_head=dict(
                type='RetinaHead',
                num_classes=1,
                in_channels=16,
                feat_channels=16,
                stacked_convs=1,
                anchor_generator=dict(
                    type='AnchorGenerator', octave_base_scale=4, scales_per_octave=1, ratios=[1.0], strides=[4, 8, 16, 32, 64]
                ),
                bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
            ),
            train_cfg=dict(
                assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0), allowed_border=-1, pos_weight=-1
            ),
            test_cfg=dict(nms_pre=100, min_bbox_size=0, score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=5),
        )
        dataset = dict(
            type='CocoDataset',
            data_root='{folder}/',
            ann_file='annotations.json',
            data_prefix=dict(img=''),
            metainfo=dict(classes=('square',)),
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='LoadAnnotations', with_bbox=True),
                dict(type='Resize', scale=(64, 64)),
                dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
            ],
        )
        train_dataloader = dict(batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True), dataset=dataset)
        val_dataloader = dict(
            batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False), dataset=dict(dataset, test_mode=True)
        )
        test_dataloader = val_dataloader
        val_evaluator = dict(type='CocoMetric', ann_file='{folder}/annotations.json', metric='bbox')
        test_evaluator = val_evaluator
        """,
        folder=folder,
    )


@pytest.fixture
def segmentation_config(write_config, tmp_path):
    """A tiny fully convolutional network on four images of two halves."""
    for kind in ('images', 'labels'):
        (tmp_path / 'segmentation' / kind).mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(4):
        labels = np.zeros((64, 64), np.uint8)
        labels[:, random.integers(16, 48) :] = 1
        pixels = (labels[..., None] * 150 + random.integers(0, 60, (64, 64, 3))).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / 'segmentation' / 'images' / f'{number}.png')
        Image.fromarray(labels).save(tmp_path / 'segmentation' / 'labels' / f'{number}.png')
    return write_config(
        'tiny_segmentor.py',
        """
        default_scope = 'mmseg'
        model = dict(
            type='EncoderDecoder',
            data_preprocessor=dict(type='SegDataPreProcessor', mean=[127.5] * 3, std=[127.5] * 3, size=(64, 64)),
            backbone=dict(type='ResNet', depth=18, base_channels=8, norm_cfg=dict(type='BN')),
            decode_head=dict(
                type='FCNHead', in_channels=64, channels=16, num_convs=1, num_classes=2, in_index=3, norm_cfg=dict(type='BN')
            ),
            train_cfg=dict(),
            test_cfg=dict(mode='whole'),
        )
        dataset = dict(
            type='BaseSegDataset',
            data_root='{folder}',
            data_prefix=dict(img_path='images', seg_map_path='labels'),
            img_suffix='.png',
            metainfo=dict(classes=('left', 'right'), palette=[[255, 0, 0], [0, 0, 255]]),
            pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')],
        )
        train_dataloader = dict(batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True), dataset=dataset)
        val_dataloader = dict(batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False), dataset=dataset)
        test_dataloader = val_dataloader
        val_evaluator = dict(type='IoUMetric')
        test_evaluator = val_evaluator
        """,
        folder=tmp_path / 'segmentation',
    )
