# Mask R-CNN on the small encoder, embedded digit scenes of 96x96 pixels, 10 classes: about four minutes on one core.
# From random initialisation:
#     mmcae train digits/mask_rcnn_vit-digits
# from a pretrained encoder, with the same budget:
#     mmcae train digits/mask_rcnn_vit-digits model.backbone.init_cfg.checkpoint=CHECKPOINT

_base_ = ['../_base_/models/mask_rcnn_vit-base.py', '../_base_/datasets/digits_coco.py', '../_base_/runtimes/detection.py']

# ---- often changed
max_iters = 450
lr = 1e-3

# ---- possibly changed: the paper's Mask R-CNN made small. Digits are 34 to 52 pixels high, so three strides and few proposals are enough
model = dict(
    data_preprocessor=dict(pad_size_divisor=16),
    backbone=dict(
        _delete_=True,
        type='mmcae.CAEViT',
        arch=dict(embed_dims=96, num_layers=4, num_heads=4),
        img_size=32,  # of pretraining, which resized the position table to scenes of 96x96 just as it happens here
        patch_size=8,
        out_indices=(1, 2, 3),
        out_type='featmap',
        final_norm=False,
    ),
    neck=[
        dict(type='mmcae.DeconvPyramid', in_channels=96, factors=(2, 1, 0.5)),
        dict(type='FPN', in_channels=[96, 96, 96], out_channels=64, num_outs=3),
    ],
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        anchor_generator=dict(type='AnchorGenerator', scales=[4, 5.6], base_sizes=[4, 6, 8], ratios=[1.0, 1.6, 2.5], strides=[4, 8, 16]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=1), out_channels=64, featmap_strides=[4]),
        bbox_head=dict(
            _delete_=True,
            type='ConvFCBBoxHead',
            num_shared_fcs=1,
            in_channels=64,
            fc_out_channels=256,
            roi_feat_size=7,
            num_classes=10,
            bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0, 0.0, 0.0, 0.0], target_stds=[0.1, 0.1, 0.2, 0.2]),
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
            loss_bbox=dict(type='L1Loss', loss_weight=1.0),
        ),
        mask_roi_extractor=dict(roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=1), out_channels=64, featmap_strides=[4]),
        mask_head=dict(num_convs=2, in_channels=64, conv_out_channels=64, num_classes=10),
    ),
    train_cfg=dict(rpn=dict(sampler=dict(num=64)), rpn_proposal=dict(nms_pre=150, max_per_img=48), rcnn=dict(sampler=dict(num=32))),
    test_cfg=dict(rpn=dict(nms_pre=150, max_per_img=48)),
)
optim_wrapper = dict(
    type='mmcae.AmpOptimWrapper',  # bfloat16 where the CPU has instructions for it: nearly twice as fast
    optimizer=dict(type='AdamW', lr=lr, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='mmcae.LayerDecayOptimWrapperConstructor',
    clip_grad=dict(max_norm=5.0),
)

# ---- rarely changed
train_cfg = dict(type='mmcae.IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [dict(type='mmcae.WarmupCosineLR', warmup=50, end=max_iters, by_epoch=False)]
default_hooks = dict(logger=dict(interval=25), checkpoint=dict(by_epoch=False, interval=max_iters))
log_processor = dict(by_epoch=False, window_size=25)
# No mirror images: a mirrored digit is another sign, or none.
tta_model = dict(type='mmcae.MaskTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=(side, side), keep_ratio=True) for side in (80, 96, 112)],
            [dict(type='RandomFlip', prob=0.0)],
            [
                dict(
                    type='PackDetInputs',
                    meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction'),
                )
            ],
        ],
    ),
]
