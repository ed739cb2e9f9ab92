# Mask R-CNN on CAE ViT-B/16, 1x: the same settings for the checkpoints of 300, 800 and 1600 epochs.
# Reported by the authors on COCO val2017, box / mask AP: 48.3 / 42.7 (300 epochs), 49.9 / 43.9 (800), 50.3 / 44.2 (1600).
#
# ---- often changed, on the command line:
#   --cfg-options model.backbone.init_cfg.checkpoint=PATH   any CAE checkpoint: mmcae's, the authors' or mmpretrain's
#   --cfg-options model.backbone.init_cfg=None              random initialisation
#   --auto-scale-lr                                         where there are not 16 GPUs of 2 images
# ---- possibly changed: the data and their classes, the scales (_base_/datasets), the learning rate and the length (_base_/schedules)
# ---- rarely changed: the detector (_base_/models), hooks and logs (_base_/runtimes)

_base_ = [
    '../_base_/models/mask_rcnn_vit-base.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/detection_1x.py',
    '../_base_/runtimes/detection.py',
]
