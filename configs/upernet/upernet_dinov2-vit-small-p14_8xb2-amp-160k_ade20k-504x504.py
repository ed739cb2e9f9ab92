# UperNet on DINOv2's ViT-S/14 with registers, ADE20K, by the protocol of CAE's configs. No figures of it are reported here.

_base_ = [
    '../_base_/models/upernet_dinov2-vit-small.py',
    '../_base_/datasets/ade20k_512x512.py',
    '../_base_/schedules/segmentation_160k.py',
    '../_base_/runtimes/segmentation.py',
]

# ---- often changed: the learning rate (for 16 images in all); the encoder's checkpoint is in _base_/models
optim_wrapper = dict(optimizer=dict(lr=1e-4))

# ---- rarely changed: crops that patches of 14 tile
train_pipeline = [{**step, 'crop_size': _base_.train_size} if step.type == 'RandomCrop' else step for step in _base_.train_pipeline]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
