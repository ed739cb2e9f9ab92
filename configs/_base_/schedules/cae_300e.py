# The paper's optimisation (arXiv 2202.03026, section 4.1) for 300 epochs of batch 2048.

# ---- often changed: the precision. The authors train in float16 with a scaled loss; bfloat16 needs no scaling and skips no steps.
#      GPUs before NVIDIA's Ampere have no bfloat16: set 'float16' there.
optim_wrapper = dict(
    type='mmcae.AmpOptimWrapper',
    dtype='bfloat16',
    optimizer=dict(type='AdamW', lr=1.5e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
    # Vectors are not decayed; cls and mask token are, as the authors have it.
    constructor='mmcae.LayerDecayOptimWrapperConstructor',
    clip_grad=dict(max_norm=3.0),
)
# Off unless mmcae train is called with --auto-scale-lr, which scales lr by batch size / 2048.
auto_scale_lr = dict(base_batch_size=2048, enable=False)

# ---- possibly changed: the length, in max_epochs and in `end`
train_cfg = dict(type='mmcae.EpochBasedTrainLoop', max_epochs=300)
param_scheduler = [dict(type='mmcae.WarmupCosineLR', warmup=10, end=300, eta_min=1e-5, by_epoch=True, convert_to_iter_based=True)]
