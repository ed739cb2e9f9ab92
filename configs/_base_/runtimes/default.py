# What every run has: hooks, logs, environment.

# ---- often changed
resume = False
load_from = None  # a whole model to start from; an encoder's checkpoint belongs into model.backbone.init_cfg

# ---- possibly changed
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    # Stops a run whose data do not fit the model, or whose loss is not finite. checks.NAME=False turns one check off; the names are in
    # docs/faults.md.
    checks=dict(type='mmcae.Checks'),
)
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='Visualizer', vis_backends=vis_backends)

# ---- rarely changed
env_cfg = dict(
    cudnn_benchmark=False,
    float32_matmul_precision='highest',  # 'high' computes in TF32 where a GPU has it
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl', timeout=600),  # seconds after which processes give up waiting for one that is gone
)
log_level = 'INFO'
