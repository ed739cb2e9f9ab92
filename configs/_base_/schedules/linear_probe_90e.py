# The paper's linear probing (arXiv 2202.03026, section 4.2): LARS without weight decay for 90 epochs of batch 16384.

# ---- often changed: the learning rate, 0.1 x batch / 256
optim_wrapper = dict(
    type='mmcae.AmpOptimWrapper',
    optimizer=dict(type='LARS', lr=6.4, momentum=0.9, weight_decay=0.0, eta=0.001),
    # Vectors get plain SGD: their norm says nothing about a good step.
    paramwise_cfg=dict(custom_keys={'.bias': dict(lars_exclude=True)}),
)
auto_scale_lr = dict(base_batch_size=16384)

# ---- possibly changed: the length, in train_cfg and in `end`
train_cfg = dict(type='mmcae.EpochBasedTrainLoop', max_epochs=90, val_interval=10)
param_scheduler = [dict(type='mmcae.WarmupCosineLR', warmup=10, end=90, eta_min=0.0, by_epoch=True, convert_to_iter_based=True)]

# ---- rarely changed
val_cfg = dict(type='mmcae.ValLoop', dtype=None)  # mixed precision, as the authors evaluate
test_cfg = dict(type='mmcae.TestLoop', dtype=None)
