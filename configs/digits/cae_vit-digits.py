"""CAE on the embedded digits: the whole algorithm on a laptop's CPU, in about four minutes of one core.

mmcae train digits/cae_vit-digits
"""

_base_ = ['../_base_/datasets/digits_pretrain.py', '../_base_/models/cae_vit-digits.py', '../_base_/runtimes/pretraining.py']

# ---- often changed
max_iters = 1600
base_lr = 2e-3
tokenizer = 'work_dirs/tokenizer_digits/tokenizer.pth'  # made by mmcae train digits/tokenizer_digits

# ---- possibly changed
model = dict(target_generator=dict(checkpoint=tokenizer))
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=base_lr, betas=(0.9, 0.95), weight_decay=0.05),
    constructor='mmcae.LayerDecayOptimWrapperConstructor',
    clip_grad=dict(max_norm=3.0),
)
param_scheduler = [dict(type='mmcae.WarmupCosineLR', warmup=max_iters // 20, end=max_iters, by_epoch=False)]

# ---- rarely changed
train_cfg = dict(type='mmcae.IterBasedTrainLoop', max_iters=max_iters)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=max_iters))
log_processor = dict(by_epoch=False)
