# What every classification run has.

_base_ = 'default.py'

# ---- often changed
randomness = dict(seed=0)

# ---- possibly changed
default_hooks = dict(
    checkpoint=dict(type='mmcae.CheckpointHook', interval=1, max_keep_ckpts=2),
    visualization=dict(type='VisualizationHook', enable=False),  # on with mmcae test --show-dir
)
visualizer = dict(type='UniversalVisualizer')

# ---- rarely changed
default_scope = 'mmpretrain'
log_processor = dict(type='mmcae.LogProcessor')  # losses are means over all processes
