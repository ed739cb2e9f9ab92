# Linear probing of CAE v2-S on ImageNet-1k, as the authors' script has it: the recipe of CAE with a batch of 8192.
# For 8 GPUs; on fewer add --auto-scale-lr.

_base_ = ['linear_vit-base-p16_cae_32xb512-amp-90e_in1k.py']

# ---- often changed: the encoder's checkpoint (mmcae's or the authors')
model = dict(
    backbone=dict(arch='small', init_cfg=dict(checkpoint='checkpoints/cae-v2_vit-small-p16_300e.pth')),
    neck=dict(input_features=384),
    head=dict(in_channels=384),
)
train_dataloader = dict(batch_size=1024)
optim_wrapper = dict(optimizer=dict(lr=3.2))
auto_scale_lr = dict(base_batch_size=8192)
