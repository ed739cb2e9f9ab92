# The paper's attentive probing (arXiv 2202.03026, section 4.2): SGD for 90 epochs of batch 8192.

# ---- often changed: the learning rate, for a batch of 8192
optim_wrapper = dict(
    type='mmcae.AmpOptimWrapper',
    optimizer=dict(type='SGD', lr=0.4, momentum=0.9, nesterov=True, weight_decay=0.0),
)
auto_scale_lr = dict(base_batch_size=8192)

# ---- possibly changed: the length, in train_cfg and in `end`
train_cfg = dict(type='mmcae.EpochBasedTrainLoop', max_epochs=90, val_interval=10)
param_scheduler = [dict(type='mmcae.WarmupCosineLR', warmup=10, end=90, eta_min=1e-6, by_epoch=True, convert_to_iter_based=True)]

# ---- rarely changed
val_cfg = dict(type='mmcae.ValLoop', dtype=None)  # mixed precision, as the authors evaluate
test_cfg = dict(type='mmcae.TestLoop', dtype=None)
