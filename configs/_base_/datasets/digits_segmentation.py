"""Embedded digit scenes, 64x64, with label maps: 0 is background, 1 to 10 are the digits 0 to 9. For IterBasedTrainLoop."""

# ---- often changed
data_root = 'data/digits/'
batch_size = 16
test_split = 'test'  # what mmcae test judges on: val to choose by, test to publish

# ---- possibly changed
num_workers = 1
train_pipeline = [dict(type='LoadImageFromFile'), dict(type='mmcae.LoadLabelMap'), dict(type='PackSegInputs')]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='mmcae.LoadLabelMap'), dict(type='PackSegInputs')]

# ---- rarely changed
data_preparation = 'Prepare it with: python tools/dataset_converters/make_digit_scenes.py --out data/digits'
metainfo = dict(
    classes=('background', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9'),
    palette=[
        (0, 0, 0),
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
scenes = dict(type='BaseSegDataset', data_root=data_root, img_suffix='.png', metainfo=metainfo)
train_prefix = dict(img_path='scenes64/train', seg_map_path='scenes64_labels/train')
val_prefix = dict(img_path='scenes64/val', seg_map_path='scenes64_labels/val')
test_prefix = dict(img_path=f'scenes64/{test_split}', seg_map_path=f'scenes64_labels/{test_split}')
train_dataloader = dict(
    batch_size=batch_size,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(data_prefix=train_prefix, pipeline=train_pipeline, **scenes),
    **workers,
)
val_dataloader = dict(
    batch_size=20,
    sampler=in_order,
    dataset=dict(data_prefix=val_prefix, test_mode=True, pipeline=test_pipeline, **scenes),
    **workers,
)
test_dataloader = dict(
    batch_size=20,
    sampler=in_order,
    dataset=dict(data_prefix=test_prefix, test_mode=True, pipeline=test_pipeline, **scenes),
    **workers,
)
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
