# Cascade Mask R-CNN on CAE ViT-L/16, 1x, by the protocol of Mask R-CNN. There are no reported figures to compare with.
#
# ---- often changed, on the command line: as for the base model
# ---- possibly changed

_base_ = [
    '../_base_/models/cascade_mask_rcnn_vit-large.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/detection_1x.py',
    '../_base_/runtimes/detection.py',
]

model = dict(backbone=dict(init_cfg=dict(checkpoint='checkpoints/cae_vit-large-p16_1600e.pth')))
optim_wrapper = dict(optimizer=dict(lr=2e-4), paramwise_cfg=dict(layer_decay_rate=0.85))
