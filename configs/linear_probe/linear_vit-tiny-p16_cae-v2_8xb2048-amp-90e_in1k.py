# Linear probing of CAE v2-T on ImageNet-1k, as the authors' script has it: the recipe of CAE with a batch of 16384.
# For 8 GPUs; on fewer add --auto-scale-lr.

_base_ = ['linear_vit-base-p16_cae_32xb512-amp-90e_in1k.py']

# ---- often changed: the encoder's checkpoint (mmcae's or the authors')
model = dict(
    backbone=dict(arch='tiny', init_cfg=dict(checkpoint='checkpoints/cae-v2_vit-tiny-p16_300e.pth')),
    neck=dict(input_features=192),
    head=dict(in_channels=192),
)
train_dataloader = dict(batch_size=2048)
optim_wrapper = dict(optimizer=dict(lr=6.4))
auto_scale_lr = dict(base_batch_size=16384)
