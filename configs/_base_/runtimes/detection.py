# What every detection run has.

_base_ = 'default.py'

# ---- possibly changed
default_hooks = dict(
    checkpoint=dict(type='mmcae.CheckpointHook', interval=1, max_keep_ckpts=2),
    visualization=dict(type='DetVisualizationHook'),  # off unless mmcae test is called with --show-dir
)
visualizer = dict(type='DetLocalVisualizer', name='visualizer')

# ---- rarely changed
default_scope = 'mmdet'
log_processor = dict(type='mmcae.LogProcessor', window_size=50, by_epoch=True)  # losses are means over all processes
