"""Embedded digits, unlabelled, for pretraining: 32x32 tiles, 64x64 and 96x96 scenes in one run.

The encoder sees the grids of classification, segmentation and detection; every batch comes from one of the three sources.
"""

# ---- often changed
data_root = 'data/digits/pretrain/'
batch_sizes = [128, 32, 14]  # tiles, scenes64, scenes96: about the same number of tokens in each, so the steps take equally long
mask_ratio = 0.7
crop_scale = (0.5, 1.0)

# ---- possibly changed
patch_size = 8
cache_images = True  # 25,000 small images: decoding would cost more than everything else
num_workers = 1
data_preprocessor = dict(
    type='mmcae.ViewPreprocessor',
    # the model's view: ImageNet's mean and standard deviation
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    # the tokenizer's view: [0, 1]
    second_mean=[0.0, 0.0, 0.0],
    second_std=[255.0, 255.0, 255.0],
    to_rgb=False,  # mmcae.LoadImage gives RGB
)

# ---- rarely changed
data_preparation = 'Prepare it with: python tools/dataset_converters/make_digit_scenes.py --out data/digits'
# No flip: a mirrored digit is another sign, or none.
tiles_pipeline = [
    dict(type='mmcae.LoadImage', cache=cache_images),
    dict(type='mmcae.TwoViewCrop', size=32, second_size=32, scale=crop_scale),
    dict(type='mmcae.RandomMaskGenerator', grid=32 // patch_size, ratio=mask_ratio),
    dict(type='PackInputs'),
]
scenes64_pipeline = [
    dict(type='mmcae.LoadImage', cache=cache_images),
    dict(type='mmcae.TwoViewCrop', size=64, second_size=64, scale=crop_scale),
    dict(type='mmcae.RandomMaskGenerator', grid=64 // patch_size, ratio=mask_ratio),
    dict(type='PackInputs'),
]
scenes96_pipeline = [
    dict(type='mmcae.LoadImage', cache=cache_images),
    dict(type='mmcae.TwoViewCrop', size=96, second_size=96, scale=crop_scale),
    dict(type='mmcae.RandomMaskGenerator', grid=96 // patch_size, ratio=mask_ratio),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=batch_sizes[0],
    num_workers=num_workers,
    persistent_workers=num_workers > 0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    batch_sampler=dict(type='mmcae.SourceBatchSampler', batch_sizes=batch_sizes),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='ConcatDataset',
        datasets=[
            dict(type='CustomDataset', data_root=data_root, data_prefix='tiles32', with_label=False, pipeline=tiles_pipeline),
            dict(type='CustomDataset', data_root=data_root, data_prefix='scenes64', with_label=False, pipeline=scenes64_pipeline),
            dict(type='CustomDataset', data_root=data_root, data_prefix='scenes96', with_label=False, pipeline=scenes96_pipeline),
        ],
    ),
)
