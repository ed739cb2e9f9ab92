# Linear probing of the small encoder on the embedded digits, with 2,000 labels: seconds, since the frozen features are computed once.
#     mmcae train digits/linear_vit-digits model.backbone.init_cfg.checkpoint=CHECKPOINT
# With an encoder of random weights: model.backbone.init_cfg=None. With fewer labels: train_dataloader.dataset.labels=500.
# Training ends with the accuracy on val, to tune on; mmcae test gives the one on test, to publish.

_base_ = ['../_base_/models/linear_vit-base.py', '../_base_/datasets/digits_classification.py', '../_base_/runtimes/classification.py']

# ---- often changed
max_iters = 500
model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=96, num_layers=4, num_heads=4),
        img_size=32,
        patch_size=8,
        # The mean over the patches, not the cls token of the paper: at this size it is the better feature of every pretrained encoder.
        out_type='avg_featmap',
        frozen_stages=4,
        init_cfg=dict(checkpoint='work_dirs/cae_vit-digits/iter_1600.pth'),
    ),
    neck=dict(input_features=96),
    head=dict(num_classes=10, in_channels=96),
)
train_dataloader = dict(dataset=dict(labels=2000))

# ---- possibly changed
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.5, momentum=0.9, weight_decay=0.0))
param_scheduler = [dict(type='mmcae.WarmupCosineLR', warmup=0, end=max_iters, by_epoch=False)]
train_cfg = dict(type='mmcae.FrozenFeatureTrainLoop', max_iters=max_iters, val_interval=max_iters)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=max_iters))

# ---- rarely changed: images so small are read faster without worker processes
train_dataloader.update(num_workers=0, persistent_workers=False, sampler=dict(type='InfiniteSampler', shuffle=True))
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = dict(num_workers=0, persistent_workers=False)
val_cfg = dict()
test_cfg = dict()
log_processor = dict(by_epoch=False)
