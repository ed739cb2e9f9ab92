# Cascade Mask R-CNN on CAE's base encoder as ViTDet has it: encoder, pyramid and norms of ViTDet's Mask R-CNN, with three box heads one
# after the other that correct boxes alike for all classes.

_base_ = './cascade_mask_rcnn_vit-base.py'

# ---- possibly changed
side = 1024  # all images are padded to squares of so many pixels, in training and in a test; scale them to it (_base_/datasets)
norm_cfg = dict(type='mmpretrain.LN2d', eps=1e-6)
backbone = dict(img_size=(side, side), window_size=14, global_blocks=(2, 5, 8, 11), out_indices=(11,), drop_path_rate=0.1, with_cp=False)

# ---- rarely changed
bbox_head = dict(reg_class_agnostic=True, reg_decoded_bbox=False, norm_cfg=norm_cfg, loss_bbox=dict(type='L1Loss', loss_weight=1.0))
model = dict(
    data_preprocessor=dict(pad_size_divisor=side),
    backbone=backbone,
    neck=dict(_delete_=True, type='mmcae.SimpleFeaturePyramid', in_channels=768, out_channels=256, num_outs=5, norm_cfg=norm_cfg),
    rpn_head=dict(num_convs=2),
    roi_head=dict(bbox_head=[dict(head, **bbox_head) for head in _base_.model.roi_head.bbox_head], mask_head=dict(norm_cfg=norm_cfg)),
)
