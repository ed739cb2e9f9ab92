# Attentive probing of CAE-L on ImageNet-1k: 81.2 top-1 in the authors' table after 1600 epochs of pretraining.
# For 32 GPUs; on fewer add --auto-scale-lr.

_base_ = [
    '../_base_/models/attentive_vit-base.py',
    '../_base_/datasets/imagenet_classification.py',
    '../_base_/schedules/attentive_probe_90e.py',
    '../_base_/runtimes/classification.py',
]

# ---- often changed: the encoder's checkpoint (mmcae's, the authors' or mmpretrain's)
model = dict(
    backbone=dict(arch='large', frozen_stages=24, init_cfg=dict(checkpoint='checkpoints/cae_vit-large-p16_1600e.pth')),
    head=dict(in_channels=1024, num_heads=16),
)
