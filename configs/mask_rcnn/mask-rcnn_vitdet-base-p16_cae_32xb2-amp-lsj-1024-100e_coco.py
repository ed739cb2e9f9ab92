# Mask R-CNN on CAE ViT-B/16 by ViTDet's recipe: windows, a simple feature pyramid, large-scale jittering at 1024x1024, 100 epochs. For
# those who can pay for it: eight times as many epochs as 1x, of larger images. There is no reported figure from CAE; detectron2's model
# zoo has, from MAE's encoder, 51.6 box / 45.9 mask AP. The numbers are those of its config mask_rcnn_vitdet_b_100ep, but for what follows:
# CAE's encoder has a cls token and layer scale, and no relative positions as ViTDet adds them; 2 images on each of 32 GPUs, not 1 on 64.
#
# ---- often changed, on the command line:
#   --cfg-options model.backbone.init_cfg.checkpoint=PATH   any CAE checkpoint: mmcae's, the authors' or mmpretrain's
#   --cfg-options model.backbone.init_cfg=None              random initialisation
#   --cfg-options model.backbone.with_cp=True               less memory, more time; see docs/detection.md for how much
#   --auto-scale-lr                                         where there are not 32 GPUs of 2 images
# ---- possibly changed: the data and their classes, the size (_base_/datasets and _base_/models), the learning rate and the length
# (_base_/schedules), a relative position bias (docs/detection.md says how, and what it costs)
# ---- rarely changed: the detector (_base_/models), hooks and logs (_base_/runtimes)

_base_ = [
    '../_base_/models/mask_rcnn_vitdet-base.py',
    '../_base_/datasets/coco_instance_lsj-1024.py',
    '../_base_/schedules/detection_lsj-100e.py',
    '../_base_/runtimes/detection.py',
]
