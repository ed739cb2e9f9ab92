# Linear probing of CAE-L on ImageNet-1k: 77.8 top-1 in the authors' table after 1600 epochs of pretraining.
# For 32 GPUs; on fewer add --auto-scale-lr.

_base_ = [
    '../_base_/models/linear_vit-base.py',
    '../_base_/datasets/imagenet_classification.py',
    '../_base_/schedules/linear_probe_90e.py',
    '../_base_/runtimes/classification.py',
]

# ---- often changed: the encoder's checkpoint (mmcae's, the authors' or mmpretrain's)
model = dict(
    backbone=dict(arch='large', frozen_stages=24, init_cfg=dict(checkpoint='checkpoints/cae_vit-large-p16_1600e.pth')),
    neck=dict(input_features=1024),
    head=dict(in_channels=1024),
)

# ---- possibly changed: the crop, of which there is a single draw, cut off where it does not fit
train_pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(type='NumpyToPIL', to_rgb=True),
    dict(type='MAERandomResizedCrop', size=224, interpolation=3),  # bicubic
    dict(type='PILToNumpy', to_bgr=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=512, dataset=dict(dataset=dict(pipeline=train_pipeline)))
