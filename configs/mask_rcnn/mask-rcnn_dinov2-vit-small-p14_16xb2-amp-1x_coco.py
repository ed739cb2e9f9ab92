# Mask R-CNN on DINOv2's ViT-S/14 with registers, 1x, by the protocol of CAE's configs. No figures of it are reported here.
#
# ---- often changed, on the command line:
#   --cfg-options model.backbone.init_cfg.checkpoint=PATH   timm's, Meta's, Hugging Face's or mmcae's
#   --auto-scale-lr                                         where there are not 16 GPUs of 2 images
# ---- possibly changed: the data and their classes, the scales (_base_/datasets), the learning rate and the length (_base_/schedules)
# ---- rarely changed: the detector (_base_/models), hooks and logs (_base_/runtimes)

_base_ = [
    '../_base_/models/mask_rcnn_dinov2-vit-small.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/detection_1x.py',
    '../_base_/runtimes/detection.py',
]
optim_wrapper = dict(optimizer=dict(lr=1e-4))  # for 32 images in all
