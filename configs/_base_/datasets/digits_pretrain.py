"""Embedded digits, unlabelled, for pretraining: the 32x32 tiles. What to copy for a folder of images of your own.

The scenes of detection and segmentation are left out on purpose: measured, a quarter of the steps spent on them costs the encoder twenty
points of kNN accuracy on tiles and gains nothing on scenes. digits_pretrain_scenes.py has them.
"""

# ---- often changed
data_root = 'data/digits/pretrain/'
batch_size = 128
mask_ratio = 0.7
crop_scale = (0.5, 1.0)

# ---- possibly changed
image_size = 32
patch_size = 8
cache_images = True
interpolation = 'bilinear'  # sharper filters keep the pixels' noise, which no context predicts: 15 points of kNN accuracy
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
train_pipeline = [
    dict(type='mmcae.LoadImage', cache=cache_images),
    dict(
        type='mmcae.TwoViewCrop',
        size=image_size,
        second_size=image_size,
        scale=crop_scale,
        interpolation=interpolation,
        second_interpolation=interpolation,
    ),
    dict(type='mmcae.RandomMaskGenerator', grid=image_size // patch_size, ratio=mask_ratio),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=num_workers,
    persistent_workers=num_workers > 0,
    sampler=dict(type='InfiniteSampler', shuffle=True),  # counted in iterations: train_cfg must have an IterBasedTrainLoop
    drop_last=True,
    collate_fn=dict(type='default_collate'),
    dataset=dict(type='CustomDataset', data_root=data_root, data_prefix='tiles32', with_label=False, pipeline=train_pipeline),
)
