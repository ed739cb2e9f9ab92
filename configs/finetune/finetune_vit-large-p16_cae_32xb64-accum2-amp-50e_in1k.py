# Fine-tuning CAE-L on ImageNet-1k: 86.2 top-1 in the authors' table after 1600 epochs of pretraining.
# For 32 GPUs; on fewer add --auto-scale-lr, or more optim_wrapper.accumulative_counts.

_base_ = [
    '../_base_/models/finetune_vit-base.py',
    '../_base_/datasets/imagenet_finetune.py',
    '../_base_/schedules/finetune_100e.py',
    '../_base_/runtimes/classification.py',
]

# ---- often changed: the encoder's checkpoint (mmcae's, the authors' or mmpretrain's)
model = dict(
    backbone=dict(arch='large', drop_path_rate=0.2, init_cfg=dict(checkpoint='checkpoints/cae_vit-large-p16_1600e.pth')),
    head=dict(in_channels=1024),
)
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(optimizer=dict(lr=2e-3), paramwise_cfg=dict(layer_decay_rate=0.75), accumulative_counts=2)

# ---- possibly changed: the length, in train_cfg and in `end`
train_cfg = dict(max_epochs=50)
param_scheduler = [dict(type='mmcae.WarmupCosineLR', warmup=5, end=50, eta_min=1e-6, by_epoch=True, convert_to_iter_based=True)]
