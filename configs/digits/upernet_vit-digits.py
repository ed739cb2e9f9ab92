# UperNet on the small encoder, digit scenes of 64x64 pixels, 11 classes: about two minutes on one core. From random initialisation:
#     mmcae train digits/upernet_vit-digits
# from a pretrained encoder, with the same budget:
#     mmcae train digits/upernet_vit-digits model.backbone.init_cfg.checkpoint=CHECKPOINT

_base_ = ['../_base_/datasets/digits_segmentation.py', '../_base_/runtimes/segmentation.py']

# ---- often changed
max_iters = 1200
lr = 2e-3

# ---- possibly changed
norm_cfg = dict(type='BN')
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        size=(64, 64),
        test_cfg=dict(size_divisor=16),
    ),
    backbone=dict(
        type='mmcae.CAEViT',
        arch=dict(embed_dims=96, num_layers=4, num_heads=4),
        img_size=32,  # of pretraining, which resized the position table to scenes of 64x64 just as it happens here
        patch_size=8,
        layer_scale_init_value=0.05,
        out_indices=(0, 1, 2, 3),
        out_type='featmap',
        final_norm=False,
    ),
    neck=dict(type='mmcae.DeconvPyramid', in_channels=96, factors=(2, 2, 1, 0.5)),  # strides 4, 4, 8, 16
    decode_head=dict(
        type='UPerHead',
        in_channels=[96, 96, 96, 96],
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=32,
        dropout_ratio=0.1,
        num_classes=11,
        norm_cfg=norm_cfg,
        align_corners=False,
        # Most pixels are background; with equal weights the head finds the digits but does not begin to tell them apart.
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0, class_weight=[0.15] + [1.0] * 10),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
optim_wrapper = dict(
    type='mmcae.AmpOptimWrapper',  # bfloat16 where the CPU has instructions for it
    optimizer=dict(type='AdamW', lr=lr, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='mmcae.LayerDecayOptimWrapperConstructor',
    clip_grad=dict(max_norm=5.0),
)

# ---- rarely changed
train_cfg = dict(type='mmcae.IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [dict(type='mmcae.WarmupCosineLR', warmup=50, end=max_iters, by_epoch=False)]
default_hooks = dict(checkpoint=dict(interval=max_iters))
