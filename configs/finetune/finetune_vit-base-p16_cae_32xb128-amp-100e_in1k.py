# Fine-tuning CAE-B on ImageNet-1k: 83.6 / 83.8 / 83.9 top-1 in the authors' table after 300 / 800 / 1600 epochs of pretraining.
# For 32 GPUs; on fewer add --auto-scale-lr, or optim_wrapper.accumulative_counts.

_base_ = [
    '../_base_/models/finetune_vit-base.py',
    '../_base_/datasets/imagenet_finetune.py',
    '../_base_/schedules/finetune_100e.py',
    '../_base_/runtimes/classification.py',
]

# ---- often changed: the encoder's checkpoint (mmcae's, the authors' or mmpretrain's)
model = dict(backbone=dict(init_cfg=dict(checkpoint='checkpoints/cae_vit-base-p16_1600e.pth')))
