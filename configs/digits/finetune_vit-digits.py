# Fine-tuning the small encoder on the embedded digits with 100 labels: about ten seconds of one core.
#     mmcae train digits/finetune_vit-digits model.backbone.init_cfg.checkpoint=CHECKPOINT
# From random weights: model.backbone.init_cfg=None. With more labels: train_dataloader.dataset.labels=500.
# Training ends with the accuracy on val, to tune on; mmcae test gives the one on test, to publish.

_base_ = ['../_base_/models/finetune_vit-base.py', '../_base_/datasets/digits_classification.py', '../_base_/runtimes/classification.py']

# ---- often changed
max_iters = 250
model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=96, num_layers=4, num_heads=4),
        img_size=32,
        patch_size=8,
        drop_path_rate=0.0,
        init_cfg=dict(checkpoint='work_dirs/cae_vit-digits/iter_1600.pth'),
    ),
    head=dict(num_classes=10, in_channels=96),
    train_cfg=None,  # no mixing of images
)
# No flip: a mirrored digit is another sign, or none.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=32, crop_ratio_range=(0.6, 1.0), backend='pillow', interpolation='bilinear'),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=25, dataset=dict(labels=100, dataset=dict(pipeline=train_pipeline)))

# ---- possibly changed
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=4e-3, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='mmcae.LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.65, no_decay=['cls_token']),
)
param_scheduler = [dict(type='mmcae.WarmupCosineLR', warmup=max_iters // 10, end=max_iters, by_epoch=False)]
train_cfg = dict(type='mmcae.IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=max_iters))

# ---- rarely changed: images so small are read faster without worker processes
train_dataloader.update(num_workers=0, persistent_workers=False, sampler=dict(type='InfiniteSampler', shuffle=True))
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = dict(num_workers=0, persistent_workers=False)
val_cfg = dict()
test_cfg = dict()
log_processor = dict(by_epoch=False)
