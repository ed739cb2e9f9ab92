# What every segmentation run has: hooks, logs, pictures.

# ---- often changed
resume = False
load_from = None  # a whole segmentor to go on from; the encoder's checkpoint belongs into model.backbone.init_cfg

# ---- possibly changed
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='mmcae.CheckpointHook', by_epoch=False, interval=8000, max_keep_ckpts=2),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    loss_check=dict(type='mmcae.CheckLoss'),  # stops a run whose loss is no number any more
    visualization=dict(type='SegVisualizationHook', interval=1),  # off unless tools/test.py is called with --show-dir
)
# Stops a run whose label maps are missing or have ids that the model has no class for.
custom_hooks = [dict(type='mmcae.CheckLabels')]
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='SegLocalVisualizer', vis_backends=vis_backends, name='visualizer')

# ---- rarely changed
default_scope = 'mmseg'
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl', timeout=600),  # seconds after which processes give up waiting for one that is gone
)
log_processor = dict(type='mmcae.LogProcessor', by_epoch=False)  # losses are means over all processes
log_level = 'INFO'
