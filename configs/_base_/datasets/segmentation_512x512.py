# Loading, augmentation and testing of the paper's segmentation protocol, for any dataset that mmseg reads.
# A dataset file inherits it and says what to read; see ade20k_512x512.py and voc12_512x512.py.

# ---- often changed: number of images per GPU, here for 8 GPUs (16 in all), and of loading processes
batch_size = 2
num_workers = 4

# ---- possibly changed
crop_size = (512, 512)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmcae.LoadLabelMap'),
    dict(type='RandomResize', scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(2048, 512), keep_ratio=True),
    # After the resizing: predictions are scored at the size of the label maps.
    dict(type='mmcae.LoadLabelMap'),
    dict(type='PackSegInputs'),
]

# ---- rarely changed
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=num_workers,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=num_workers,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

# Six scales and their mirror images, averaged: mmcae test --tta.
tta_model = dict(type='SegTTAModel')
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=(int(2048 * r), int(512 * r)), keep_ratio=True) for r in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)],
            [dict(type='RandomFlip', prob=0.0, direction='horizontal'), dict(type='RandomFlip', prob=1.0, direction='horizontal')],
            [dict(type='mmcae.LoadLabelMap')],
            [dict(type='PackSegInputs')],
        ],
    ),
]
