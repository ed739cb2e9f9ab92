# The paper's detection schedule: AdamW with layer-wise learning rates, 12 epochs of 32 images an iteration, two steps down.

# ---- often changed: the learning rate, for 32 images in all
optim_wrapper = dict(
    type='mmcae.AmpOptimWrapper',  # bfloat16 where the GPU has it, else float16, which the paper used: dtype='float16'
    optimizer=dict(type='AdamW', lr=3e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='mmcae.LayerDecayOptimWrapperConstructor',
    # The cls token is decayed, unlike in pretraining: so did the paper.
    paramwise_cfg=dict(layer_decay_rate=0.75),
)
auto_scale_lr = dict(enable=False, base_batch_size=32)

# ---- possibly changed: the length, in train_cfg, and the epochs after which the learning rate is divided by 10
train_cfg = dict(type='mmcae.EpochBasedTrainLoop', max_epochs=12, val_interval=1)
param_scheduler = [
    # mmengine reaches the full rate at iteration `end - 1`: at iteration i < 500 the factor is 0.001 + 0.999 * i / 500.
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=501),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[9, 11], gamma=0.1),
]

# ---- rarely changed
val_cfg = dict(type='mmcae.ValLoop', dtype='float32')  # dtype=None is faster on a GPU
test_cfg = dict(type='mmcae.TestLoop', dtype='float32')
