"""Embedded digit scenes, 96x96, as COCO instances: 1 to 4 digits each, boxes and masks of the visible part. For IterBasedTrainLoop."""

# ---- often changed
data_root = 'data/digits/'
batch_size = 16
test_split = 'test'  # what mmcae test judges on: val to choose by, test to publish

# ---- possibly changed
num_workers = 1
image_size = (96, 96)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=image_size, keep_ratio=True),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_size, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]

# ---- rarely changed
data_preparation = 'Prepare it with: python tools/dataset_converters/make_digit_scenes.py --out data/digits'
metainfo = dict(
    classes=('0', '1', '2', '3', '4', '5', '6', '7', '8', '9'),
    palette=[
        (230, 60, 60),
        (235, 145, 40),
        (225, 215, 50),
        (120, 200, 60),
        (40, 160, 90),
        (60, 200, 200),
        (60, 130, 230),
        (110, 80, 220),
        (190, 80, 220),
        (235, 90, 165),
    ],
)
workers = dict(num_workers=num_workers, persistent_workers=num_workers > 0)
in_order = dict(type='DefaultSampler', shuffle=False)
scenes = dict(type='mmcae.CocoDataset', data_root=data_root, metainfo=metainfo)
train_split = dict(ann_file='annotations/scenes96_train.json', data_prefix=dict(img='scenes96/train/'))
val_split = dict(ann_file='annotations/scenes96_val.json', data_prefix=dict(img='scenes96/val/'), test_mode=True)
judged_split = dict(ann_file=f'annotations/scenes96_{test_split}.json', data_prefix=dict(img=f'scenes96/{test_split}/'), test_mode=True)
train_dataloader = dict(
    batch_size=batch_size,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(filter_cfg=dict(filter_empty_gt=True), pipeline=train_pipeline, **train_split, **scenes),
    **workers,
)
val_dataloader = dict(
    batch_size=20,
    drop_last=False,
    sampler=in_order,
    dataset=dict(pipeline=test_pipeline, **val_split, **scenes),
    **workers,
)
test_dataloader = dict(
    batch_size=20,
    drop_last=False,
    sampler=in_order,
    dataset=dict(pipeline=test_pipeline, **judged_split, **scenes),
    **workers,
)
val_evaluator = dict(type='mmcae.CocoMetric', ann_file=data_root + 'annotations/scenes96_val.json', metric=['bbox', 'segm'])
test_evaluator = dict(type='mmcae.CocoMetric', ann_file=data_root + f'annotations/scenes96_{test_split}.json', metric=['bbox', 'segm'])
