# What every classification run has: hooks, logs, checks.

# ---- often changed
resume = False
load_from = None  # a whole classifier to go on from; the encoder's checkpoint belongs into model.backbone.init_cfg
randomness = dict(seed=0)

# ---- possibly changed
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='mmcae.CheckpointHook', interval=1, max_keep_ckpts=2),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    loss_check=dict(type='mmcae.CheckLoss'),  # stops a run whose loss is no number any more
    visualization=dict(type='VisualizationHook', enable=False),  # on with tools/test.py --show-dir
)
# Stops a run whose classes do not fit the model, or differ between the splits.
custom_hooks = [dict(type='mmcae.CheckClasses')]
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='UniversalVisualizer', vis_backends=vis_backends)

# ---- rarely changed
default_scope = 'mmpretrain'
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl', timeout=600),  # seconds after which processes give up waiting for one that is gone
)
log_processor = dict(type='mmcae.LogProcessor')  # losses are means over all processes
log_level = 'INFO'
