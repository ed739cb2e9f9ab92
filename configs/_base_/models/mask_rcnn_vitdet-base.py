# Mask R-CNN on CAE's base encoder as ViTDet has it (arXiv 2203.16527, section 3, and its configs in detectron2): attention in windows, one
# map, a simple feature pyramid, and normalised heads.

_base_ = './mask_rcnn_vit-base.py'

# ---- possibly changed
side = 1024  # all images are padded to squares of so many pixels, in training and in a test; scale them to it (_base_/datasets)
norm_cfg = dict(type='mmpretrain.LN2d', eps=1e-6)  # over the channels at each place: the number of images on a GPU does not matter
backbone = dict(
    # The size of the images here: the position table is resized to it when the checkpoint is loaded.
    img_size=(side, side),
    # Windows of 14x14 patches, as large as the images of pretraining, and four blocks, evenly spread, that see the whole image.
    window_size=14,
    global_blocks=(2, 5, 8, 11),
    out_indices=(11,),
    drop_path_rate=0.1,
    with_cp=False,
)

# ---- rarely changed: boxes are learnt as differences (L1), as in mmdet's standard Mask R-CNN
bbox_head = dict(reg_decoded_bbox=False, norm_cfg=norm_cfg, loss_bbox=dict(type='L1Loss', loss_weight=1.0))
model = dict(
    data_preprocessor=dict(pad_size_divisor=side),
    backbone=backbone,
    neck=dict(_delete_=True, type='mmcae.SimpleFeaturePyramid', in_channels=768, out_channels=256, num_outs=5, norm_cfg=norm_cfg),
    rpn_head=dict(num_convs=2),
    roi_head=dict(bbox_head=bbox_head, mask_head=dict(norm_cfg=norm_cfg)),
)
