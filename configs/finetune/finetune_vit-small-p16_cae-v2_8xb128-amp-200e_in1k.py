# Fine-tuning of CAE v2-S on ImageNet-1k for 200 epochs of batch 1024, as the authors' script has it.
# For 8 GPUs; on fewer add --auto-scale-lr, or optim_wrapper.accumulative_counts.

_base_ = ['finetune_vit-base-p16_cae_32xb128-amp-100e_in1k.py']

# ---- often changed: the encoder's checkpoint (mmcae's or the authors')
model = dict(
    backbone=dict(arch='small', drop_path_rate=0.1, init_cfg=dict(checkpoint='checkpoints/cae-v2_vit-small-p16_300e.pth')),
    head=dict(in_channels=384),
)
optim_wrapper = dict(optimizer=dict(lr=4e-4), paramwise_cfg=dict(layer_decay_rate=0.75))
auto_scale_lr = dict(base_batch_size=1024)

# ---- possibly changed: the length, in train_cfg and in `end`
train_cfg = dict(max_epochs=200)
param_scheduler = [dict(type='mmcae.WarmupCosineLR', warmup=20, end=200, eta_min=1e-6, by_epoch=True, convert_to_iter_based=True)]
