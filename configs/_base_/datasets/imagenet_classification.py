# ImageNet-1k, labelled, for the probes: random crops and flips in training, the centre in evaluation; PIL's resizing throughout.

# ---- often changed: where the data is, what share of the labels to use, images per GPU
data_root = 'data/imagenet/'
labels = 1.0  # share of the training labels (0.01, 0.1, 1.0), or a whole number of them, balanced over the classes
batch_size = 256

# ---- possibly changed
num_workers = 8
data_preprocessor = dict(num_classes=1000, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
train_pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(type='RandomResizedCrop', scale=224, backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(type='ResizeEdge', scale=256, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]

# ---- rarely changed
data_preparation = 'Put ImageNet-1k there (train/<class>/*.JPEG, val/*.JPEG with meta/val.txt), or set data_root to where it is.'
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=num_workers,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    drop_last=True,
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='mmcae.LabelSubset', labels=labels, dataset=dict(type='ImageNet', data_root=data_root, split='train', pipeline=train_pipeline)
    ),
)
val_dataloader = dict(
    batch_size=256,
    num_workers=num_workers,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='ImageNet', data_root=data_root, split='val', pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_evaluator = val_evaluator
