# CAE-L as in cae_vit-large-p16_32xb64-amp-coslr-1600e_in1k.py by DeepSpeed, its optimizer state shared out over the GPUs (ZeRO stage 1).
# Needs `pip install -e .[openmmlab,deepspeed]`. docs/distributed.md tells when and how, and about its checkpoints.

_base_ = ['cae_vit-large-p16_32xb64-amp-coslr-1600e_in1k.py']

# ---- possibly changed: the stage; 2 shares the gradients out too
runner_type = 'FlexibleRunner'
strategy = dict(
    type='mmcae.DeepSpeedStrategy',
    dtype='bfloat16',
    zero_optimization=dict(stage=1),
    gradient_clipping=3.0,
)

# ---- rarely changed: DeepSpeed clips and accumulates by itself (strategy.gradient_accumulation_steps)
optim_wrapper = dict(
    _delete_=True,
    type='DeepSpeedOptimWrapper',
    optimizer=dict(type='AdamW', lr=1.5e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
    constructor='mmcae.LayerDecayOptimWrapperConstructor',
)
