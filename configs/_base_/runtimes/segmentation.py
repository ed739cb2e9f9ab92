# What every segmentation run has.

_base_ = 'default.py'

# ---- possibly changed
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(type='mmcae.CheckpointHook', by_epoch=False, interval=8000, max_keep_ckpts=2),
    visualization=dict(type='SegVisualizationHook', interval=1),  # off unless mmcae test is called with --show-dir
)
visualizer = dict(type='SegLocalVisualizer', name='visualizer')

# ---- rarely changed
default_scope = 'mmseg'
env_cfg = dict(cudnn_benchmark=True)
log_processor = dict(type='mmcae.LogProcessor', by_epoch=False)  # losses are means over all processes
