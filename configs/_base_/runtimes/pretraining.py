# What every pretraining run has.

_base_ = 'default.py'

# ---- often changed
max_bad_files = 0.01  # the run stops when a larger share of the files cannot be read; bad_files.txt in the work dir lists them

# ---- possibly changed: how many iterations a crash may cost (recovery_interval; docs/faults.md)
default_hooks = dict(
    checkpoint=dict(type='mmcae.CheckpointHook', interval=1, max_keep_ckpts=3, recovery_interval=500),
    # RankMe, spread, alignment, attention, gradients and speed, with alarms; None turns it off.
    statistics=dict(type='mmcae.TrainingStatistics', interval=200),
    checks=dict(bad_files=dict(max_share=max_bad_files)),
)
visualizer = dict(type='UniversalVisualizer')

# ---- rarely changed
default_scope = 'mmpretrain'
env_cfg = dict(cudnn_benchmark=True)
log_processor = dict(type='mmcae.LogProcessor', window_size=50)  # losses are means over all processes
randomness = dict(seed=None)
