# The paper's segmentation schedule: AdamW with layer-wise learning rates, 160k iterations of 16 images, linear decay.

# ---- often changed: the learning rate, for 16 images in all; each checkpoint of the paper has its own (configs/upernet/)
optim_wrapper = dict(
    type='mmcae.AmpOptimWrapper',  # bfloat16 where the GPU has it, else float16, which the paper used: dtype='float16'
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='mmcae.LayerDecayOptimWrapperConstructor',
    # The cls token and the bias tables are decayed, unlike in pretraining: so did the paper.
    paramwise_cfg=dict(layer_decay_rate=0.65),
)

# mmcae train --auto-scale-lr adapts the learning rate to another number of images.
auto_scale_lr = dict(enable=False, base_batch_size=16)

# ---- possibly changed: the length, in train_cfg and in the `end` of the decay
train_cfg = dict(type='mmcae.IterBasedTrainLoop', max_iters=160000, val_interval=16000)
# The warm-up multiplies a decay that begins at iteration 0: at iteration i the learning rate is lr * (1 - i / 160000), before 1500 times a
# factor that rises from 1e-6 (i = 0) to 1 (i = 1500). The odd numbers: mmengine's schedulers reach their end value at `end - 1`.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1501),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=0, end=160001),
]

# ---- rarely changed
val_cfg = dict(type='mmcae.ValLoop', dtype='float32')  # dtype=None is faster on a GPU
test_cfg = dict(type='mmcae.TestLoop', dtype='float32')
