# Mask R-CNN on CAE ViT-L/16 by ViTDet's recipe. There is no reported figure from CAE; detectron2's model zoo has, from MAE's encoder, 55.5
# box / 49.2 mask AP. The numbers are those of its config mask_rcnn_vitdet_l_100ep, but for what the base model's header names.
#
# ---- often changed, on the command line: as for the base model
# ---- possibly changed

_base_ = [
    '../_base_/models/mask_rcnn_vitdet-large.py',
    '../_base_/datasets/coco_instance_lsj-1024.py',
    '../_base_/schedules/detection_lsj-100e.py',
    '../_base_/runtimes/detection.py',
]

train_dataloader = dict(batch_size=1)
model = dict(backbone=dict(init_cfg=dict(checkpoint='checkpoints/cae_vit-large-p16_1600e.pth')))
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.8))
