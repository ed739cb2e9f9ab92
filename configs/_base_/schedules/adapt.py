# Going on from an encoder that is trained: a small learning rate, smaller still for the first layers.

# ---- often changed
max_epochs = 20
base_lr = 1e-4  # for 256 images a step, of the last layers and of what is new
layer_decay = 0.8  # layer i of L learns at layer_decay ** (L - 1 - i) of it; 1 for an encoder that starts afresh, and for LoRA

# ---- possibly changed
warmup = min(1, max_epochs - 1)
optim_wrapper = dict(
    type='mmcae.AmpOptimWrapper',
    dtype='bfloat16',  # 'float16' on GPUs before NVIDIA's Ampere
    optimizer=dict(type='AdamW', lr=base_lr, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='mmcae.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=layer_decay),
    clip_grad=dict(max_norm=3.0),
)
param_scheduler = [
    dict(type='mmcae.WarmupCosineLR', warmup=warmup, end=max_epochs, eta_min=1e-6, by_epoch=True, convert_to_iter_based=True)
]
train_cfg = dict(type='mmcae.EpochBasedTrainLoop', max_epochs=max_epochs)
auto_scale_lr = dict(base_batch_size=256, enable=False)
