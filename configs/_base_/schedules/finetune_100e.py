# The paper's fine-tuning (arXiv 2202.03026, section 4.2): AdamW with layer-wise learning rates for 100 epochs of batch 4096.

# ---- often changed: the learning rate, for a batch of 4096, and how much smaller it is from layer to layer
optim_wrapper = dict(
    type='mmcae.AmpOptimWrapper',
    optimizer=dict(type='AdamW', lr=8e-3, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='mmcae.LayerDecayOptimWrapperConstructor',
    # Bias tables are decayed; vectors never are.
    paramwise_cfg=dict(layer_decay_rate=0.65, no_decay=['cls_token']),
)
auto_scale_lr = dict(base_batch_size=4096)

# ---- possibly changed: the length, in train_cfg and in `end`
train_cfg = dict(type='mmcae.EpochBasedTrainLoop', max_epochs=100, val_interval=5)
param_scheduler = [dict(type='mmcae.WarmupCosineLR', warmup=5, end=100, eta_min=1e-6, by_epoch=True, convert_to_iter_based=True)]

# ---- rarely changed
val_cfg = dict(type='mmcae.ValLoop', dtype=None)  # mixed precision, as the authors evaluate
test_cfg = dict(type='mmcae.TestLoop', dtype=None)
