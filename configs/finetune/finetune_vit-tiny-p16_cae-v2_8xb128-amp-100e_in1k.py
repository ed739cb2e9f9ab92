# Fine-tuning of CAE v2-T on ImageNet-1k for 100 epochs of batch 1024, as the authors' script has it.
# For 8 GPUs; on fewer add --auto-scale-lr, or optim_wrapper.accumulative_counts.

_base_ = ['finetune_vit-base-p16_cae_32xb128-amp-100e_in1k.py']

# ---- often changed: the encoder's checkpoint (mmcae's or the authors')
model = dict(
    backbone=dict(arch='tiny', drop_path_rate=0.0, init_cfg=dict(checkpoint='checkpoints/cae-v2_vit-tiny-p16_300e.pth')),
    head=dict(in_channels=192, loss=dict(label_smooth_val=0.0)),
    train_cfg=dict(augments=dict(_delete_=True, type='Mixup', alpha=0.2)),
)
optim_wrapper = dict(optimizer=dict(lr=4e-3), paramwise_cfg=dict(layer_decay_rate=0.85))
auto_scale_lr = dict(base_batch_size=1024)
