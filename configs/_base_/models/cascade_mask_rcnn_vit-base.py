# Cascade Mask R-CNN on CAE's base encoder: Mask R-CNN's encoder, pyramid and heads, with three box heads one after the other.

_base_ = './mask_rcnn_vit-base.py'

# ---- often changed: the classes of each box head and of the mask head, from the base
num_classes = _base_.num_classes

# ---- possibly changed: for each stage the scale of its corrections and the overlap from which a box counts as found
target_stds = ([0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067])
overlaps = (0.5, 0.6, 0.7)

# ---- rarely changed: mmdet's standard Cascade Mask R-CNN (but for the anchors at the border, which count as in Mask R-CNN)
model = dict(
    type='CascadeRCNN',
    roi_head=dict(
        type='CascadeRoIHead',
        num_stages=3,
        stage_loss_weights=[1, 0.5, 0.25],
        bbox_head=[dict(_base_.bbox_head, bbox_coder=dict(_base_.bbox_head.bbox_coder, target_stds=stds)) for stds in target_stds],
    ),
    train_cfg=dict(
        rpn_proposal=dict(max_per_img=2000),
        rcnn=[
            dict(
                assigner=dict(
                    type='MaxIoUAssigner', pos_iou_thr=iou, neg_iou_thr=iou, min_pos_iou=iou, match_low_quality=False, ignore_iof_thr=-1
                ),
                sampler=dict(type='RandomSampler', num=512, pos_fraction=0.25, neg_pos_ub=-1, add_gt_as_proposals=True),
                mask_size=28,
                pos_weight=-1,
                debug=False,
            )
            for iou in overlaps
        ],
    ),
)
