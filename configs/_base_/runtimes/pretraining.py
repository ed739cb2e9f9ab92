# What every pretraining run has: hooks and logs.

# ---- often changed
resume = False
load_from = None  # to start from other weights set model.init_cfg, which is strict

# ---- possibly changed
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    check_sample=dict(type='mmcae.CheckSample'),
)
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='UniversalVisualizer', vis_backends=vis_backends)

# ---- rarely changed
default_scope = 'mmpretrain'
env_cfg = dict(cudnn_benchmark=True, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0), dist_cfg=dict(backend='nccl'))
log_processor = dict(window_size=50)
log_level = 'INFO'
randomness = dict(seed=None)
