# Cascade Mask R-CNN on CAE ViT-B/16, 1x, by the protocol of Mask R-CNN. There are no reported figures to compare with.
#
# ---- often changed, on the command line:
#   --cfg-options model.backbone.init_cfg.checkpoint=PATH   any CAE checkpoint: mmcae's, the authors' or mmpretrain's
#   --cfg-options model.backbone.init_cfg=None              random initialisation
#   --auto-scale-lr                                         where there are not 16 GPUs of 2 images
# ---- possibly changed: the data and their classes, the scales (_base_/datasets), the learning rate and the length (_base_/schedules)
# ---- rarely changed: the detector (_base_/models), hooks and logs (_base_/runtimes)

_base_ = [
    '../_base_/models/cascade_mask_rcnn_vit-base.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/detection_1x.py',
    '../_base_/runtimes/detection.py',
]
