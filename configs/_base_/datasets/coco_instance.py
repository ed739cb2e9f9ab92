# COCO 2017 with boxes and masks, or any data in its format, at the scales of the paper's detection protocol (those of DETR).

# ---- often changed: docs/detection.md has the few lines that data of your own take
data_root = 'data/coco/'
train_annotations, train_images = 'annotations/instances_train2017.json', 'train2017/'
val_annotations, val_images = 'annotations/instances_val2017.json', 'val2017/'
data_preparation = 'COCO: unpack train2017.zip, val2017.zip and annotations_trainval2017.zip (https://cocodataset.org) into data/coco/.'
batch_size = 2  # images for each GPU; the paper's 32 are 16 GPUs
num_workers = 4

# ---- possibly changed: (long side, short side) in pixels
scales = [(1333, side) for side in range(480, 801, 32)]
test_scale = (1333, 800)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='RandomChoice',
        transforms=[
            [dict(type='RandomChoiceResize', scales=scales, keep_ratio=True)],
            [
                dict(type='RandomChoiceResize', scales=[(1333, 400), (1333, 500), (1333, 600)], keep_ratio=True),
                dict(type='RandomCrop', crop_type='absolute_range', crop_size=(384, 600), allow_negative_crop=True),
                dict(type='RandomChoiceResize', scales=scales, keep_ratio=True),
            ],
        ],
    ),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=test_scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),  # after Resize: scores are counted in the original image
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
# mmcae test --tta: the image and its mirror image at three scales.
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=(1333, side), keep_ratio=True) for side in (672, 800, 928)],
            [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)],
            [
                dict(
                    type='PackDetInputs',
                    meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction'),
                )
            ],
        ],
    ),
]
tta_model = dict(type='mmcae.MaskTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))

# ---- rarely changed
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=num_workers,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(
        type='mmcae.CocoDataset',
        data_root=data_root,
        ann_file=train_annotations,
        data_prefix=dict(img=train_images),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=num_workers,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmcae.CocoDataset',
        data_root=data_root,
        ann_file=val_annotations,
        data_prefix=dict(img=val_images),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='mmcae.CocoMetric', ann_file=data_root + val_annotations, metric=['bbox', 'segm'])
test_evaluator = val_evaluator
