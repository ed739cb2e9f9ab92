"""ImageNet-1k for pretraining with the paper's views and masks: 224 pixels for the model, 112 for the DALL-E tokenizer, 98 of 196 masked.

Labels are not used: all images below train/ are, whatever folders they are in.
"""

# ---- often changed
data_root = 'data/imagenet/'
batch_size = 64  # per GPU; the paper trains on 32
num_masked = 98
crop_scale = (0.08, 1.0)
reduced_decoding = False  # JPEGs far larger than a view are decoded no finer than it needs: faster, pixels differ a little

# ---- possibly changed
num_workers = 8
# 'device': views are made on the GPU, for more images per loader core. 'pillow': the very pixels of the authors' pipeline, at half the
# speed. They differ by rounding.
resize_backend = 'torch'
data_preprocessor = dict(
    type='mmcae.ViewPreprocessor',
    # the model's view: ImageNet's mean and standard deviation
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    # the tokenizer's view: DALL-E's 0.8 * x + 0.1 of x in [0, 1]
    second_mean=[-31.875, -31.875, -31.875],
    second_std=[318.75, 318.75, 318.75],
    to_rgb=False,  # mmcae.LoadImage gives RGB
)

# ---- rarely changed
data_preparation = 'Put ImageNet-1k there, its training images in train/<class>/*.JPEG, or set data_root to where it is.'
crop = dict(type='mmcae.TwoViewCrop', size=224, second_size=112, scale=crop_scale, backend=resize_backend)
train_pipeline = [
    dict(type='mmcae.LoadImage', crop=crop if reduced_decoding else None),
    dict(type='RandomFlip', prob=0.5),
    crop,
    dict(type='mmcae.BlockMaskGenerator', grid=14, num_masked=num_masked),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=num_workers,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    drop_last=True,
    collate_fn=dict(type='mmcae.collate_views'),
    dataset=dict(type='mmcae.ImageFolder', data_root=data_root, data_prefix='train', pipeline=train_pipeline),
)
