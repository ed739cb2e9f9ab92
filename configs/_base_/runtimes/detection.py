# What every detection run has: hooks, logs, pictures.

# ---- often changed
resume = False
load_from = None  # a whole detector to go on from; the encoder's checkpoint belongs into model.backbone.init_cfg

# ---- possibly changed
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='mmcae.CheckpointHook', interval=1, max_keep_ckpts=2),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    loss_check=dict(type='mmcae.CheckLoss'),  # stops a run whose loss is no number any more
    visualization=dict(type='DetVisualizationHook'),  # off unless tools/test.py is called with --show-dir
)
# Stops a run whose model has another number of classes than the data.
custom_hooks = [dict(type='mmcae.CheckDetector')]
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='DetLocalVisualizer', vis_backends=vis_backends, name='visualizer')

# ---- rarely changed
default_scope = 'mmdet'
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl', timeout=600),  # seconds after which processes give up waiting for one that is gone
)
log_processor = dict(type='mmcae.LogProcessor', window_size=50, by_epoch=True)  # losses are means over all processes
log_level = 'INFO'
