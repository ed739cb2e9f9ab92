# What every pretraining run has: hooks and logs.

# ---- often changed
resume = False
load_from = None  # to start from other weights set model.init_cfg, which is strict
max_bad_files = 0.01  # the run stops when a larger share of the files cannot be read; bad_files.txt in the work dir lists them

# ---- possibly changed: how many iterations a crash may cost (recovery_interval; docs/faults.md)
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='mmcae.CheckpointHook', interval=1, max_keep_ckpts=3, recovery_interval=500),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    check_sample=dict(type='mmcae.CheckSample'),
    loss_check=dict(type='mmcae.CheckLoss'),  # stops a run whose loss is no number any more
    bad_files=dict(type='mmcae.ReportBadFiles', max_share=max_bad_files),
)
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='UniversalVisualizer', vis_backends=vis_backends)

# ---- rarely changed
default_scope = 'mmpretrain'
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl', timeout=600),  # seconds after which processes give up waiting for one that is gone
)
log_processor = dict(type='mmcae.LogProcessor', window_size=50)  # losses are means over all processes
log_level = 'INFO'
randomness = dict(seed=None)
