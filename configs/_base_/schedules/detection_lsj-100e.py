# ViTDet's schedule (arXiv 2203.16527, appendix, and its configs in detectron2): AdamW with layer-wise learning rates, 100 epochs of 64
# images an iteration, two steps down. ViTDet counts 184,375 iterations, with the steps after 163,889 and 177,546 of them.

# ---- often changed: the learning rate, for 64 images in all
optim_wrapper = dict(
    type='mmcae.AmpOptimWrapper',  # bfloat16 where the GPU has it, else float16, which ViTDet used: dtype='float16'
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1),
    constructor='mmcae.LayerDecayOptimWrapperConstructor',  # which decays no biases; ViTDet leaves out norms alone
    paramwise_cfg=dict(layer_decay_rate=0.7),
)
auto_scale_lr = dict(enable=False, base_batch_size=64)

# ---- possibly changed: the length, in train_cfg, and the epochs after which the learning rate is divided by 10
train_cfg = dict(type='mmcae.EpochBasedTrainLoop', max_epochs=100, val_interval=5)
param_scheduler = [
    # mmengine reaches the full rate at iteration `end - 1`: at iteration i < 250 the factor is 0.001 + 0.999 * i / 250.
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=251),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=100, milestones=[89, 96], gamma=0.1),
]

# ---- rarely changed
val_cfg = dict(type='mmcae.ValLoop', dtype='float32')  # dtype=None is faster on a GPU
test_cfg = dict(type='mmcae.TestLoop', dtype='float32')
