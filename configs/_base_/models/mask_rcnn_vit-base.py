# Mask R-CNN on CAE's base encoder, as the paper's detection protocol has it (section 4.3, table 5).

# ---- often changed: set these in your own config
num_classes = 80
checkpoint = 'checkpoints/cae_vit-base-p16_1600e.pth'  # of CAE pretraining: mmcae's, the authors' or mmpretrain's

# ---- possibly changed
norm_cfg = dict(type='SyncBN', requires_grad=True)  # becomes ordinary batch norm on one device
backbone = dict(
    type='mmcae.CAEViT',
    arch='base',
    # Not the size of the images: the position table is resized to this size once, when the checkpoint is loaded, and from it to the size of
    # every batch. Keep it when you change the scales of the images.
    img_size=(672, 1088),
    patch_size=16,
    out_indices=(3, 5, 7, 11),
    out_type='featmap',
    final_norm=False,
    drop_path_rate=0.2,
    layer_scale_init_value=0.1,
    with_cp=True,  # recomputes the blocks in the backward pass: less memory, more time; see docs/detection.md for how much
    init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
)
# One after the other: the encoder's four maps, all of stride 16, become strides 4, 8, 16, 32, and then mmdet's feature pyramid.
neck = [
    dict(type='mmcae.DeconvPyramid', in_channels=768, norm_cfg=norm_cfg),
    dict(type='FPN', in_channels=[768, 768, 768, 768], out_channels=256, num_outs=5),
]
bbox_head = dict(
    type='Shared4Conv1FCBBoxHead',
    in_channels=256,
    fc_out_channels=1024,
    roi_feat_size=7,
    num_classes=num_classes,
    bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0, 0.0, 0.0, 0.0], target_stds=[0.1, 0.1, 0.2, 0.2]),
    reg_class_agnostic=False,
    reg_decoded_bbox=True,
    norm_cfg=norm_cfg,
    loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    loss_bbox=dict(type='GIoULoss', loss_weight=10.0),
)

# ---- rarely changed: mmdet's standard Mask R-CNN
model = dict(
    type='MaskRCNN',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_mask=True,
        pad_size_divisor=32,
        non_blocking=True,  # copies from pinned memory
    ),
    backbone=backbone,
    neck=neck,
    rpn_head=dict(
        type='mmcae.RPNHead',
        in_channels=256,
        feat_channels=256,
        anchor_generator=dict(type='AnchorGenerator', scales=[8], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64]),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0, 0.0, 0.0, 0.0], target_stds=[1.0, 1.0, 1.0, 1.0]),
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0),
        loss_bbox=dict(type='L1Loss', loss_weight=1.0),
    ),
    roi_head=dict(
        type='StandardRoIHead',
        bbox_roi_extractor=dict(
            type='mmcae.SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0),
            out_channels=256,
            featmap_strides=[4, 8, 16, 32],
        ),
        bbox_head=bbox_head,
        mask_roi_extractor=dict(
            type='mmcae.SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=0),
            out_channels=256,
            featmap_strides=[4, 8, 16, 32],
        ),
        mask_head=dict(
            type='FCNMaskHead',
            num_convs=4,
            in_channels=256,
            conv_out_channels=256,
            num_classes=num_classes,
            loss_mask=dict(type='CrossEntropyLoss', use_mask=True, loss_weight=1.0),
        ),
    ),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(
                type='MaxIoUAssigner', pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3, match_low_quality=True, ignore_iof_thr=-1
            ),
            sampler=dict(type='RandomSampler', num=256, pos_fraction=0.5, neg_pos_ub=-1, add_gt_as_proposals=False),
            allowed_border=-1,
            pos_weight=-1,
            debug=False,
        ),
        rpn_proposal=dict(nms_pre=2000, max_per_img=1000, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(
            assigner=dict(
                type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5, match_low_quality=True, ignore_iof_thr=-1
            ),
            sampler=dict(type='RandomSampler', num=512, pos_fraction=0.25, neg_pos_ub=-1, add_gt_as_proposals=True),
            mask_size=28,
            pos_weight=-1,
            debug=False,
        ),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=1000, max_per_img=1000, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=100, mask_thr_binary=0.5),
    ),
)
