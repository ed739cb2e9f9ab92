# UperNet on CAE-B pretrained for 1600 epochs, Pascal VOC 2012: the ADE20K recipe with another dataset, as an example (no published figure).

_base_ = [
    '../_base_/models/upernet_vit-base.py',
    '../_base_/datasets/voc12_512x512.py',
    '../_base_/schedules/segmentation_160k.py',
    '../_base_/runtimes/segmentation.py',
]
checkpoint = 'checkpoints/cae_vit-base-p16_1600e.pth'
model = dict(backbone=dict(init_cfg=dict(checkpoint=checkpoint)), decode_head=dict(num_classes=21), auxiliary_head=dict(num_classes=21))
