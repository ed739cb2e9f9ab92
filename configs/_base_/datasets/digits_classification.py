"""Embedded digits as a class tree, 32x32: train on all or a few labels, tune on val, publish test."""

# ---- often changed
data_root = 'data/digits/classification/'
labels = 1.0  # share of the training labels (0.01, 0.1, 1.0), or a whole number of them (100, 500, 2000), balanced over the classes
batch_size = 128
test_split = 'test'  # what mmcae test judges on: val to choose by, test to publish

# ---- possibly changed
num_workers = 1
data_preprocessor = dict(num_classes=10, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
train_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]

# ---- rarely changed
data_preparation = 'Prepare it with: python tools/dataset_converters/make_digit_scenes.py --out data/digits'
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=num_workers,
    persistent_workers=num_workers > 0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='mmcae.LabelSubset',
        labels=labels,
        dataset=dict(type='CustomDataset', data_root=data_root, data_prefix='train', pipeline=train_pipeline),
    ),
)
val_dataloader = dict(
    batch_size=250,
    num_workers=num_workers,
    persistent_workers=num_workers > 0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='CustomDataset', data_root=data_root, data_prefix='val', pipeline=test_pipeline),
)
test_dataloader = dict(
    batch_size=250,
    num_workers=num_workers,
    persistent_workers=num_workers > 0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='CustomDataset', data_root=data_root, data_prefix=test_split, pipeline=test_pipeline),
)
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_evaluator = val_evaluator
