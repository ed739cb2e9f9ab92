# UperNet on CAE-B pretrained for 1600 epochs, ADE20K: 50.3 mIoU in the authors' table.

_base_ = [
    '../_base_/models/upernet_vit-base.py',
    '../_base_/datasets/ade20k_512x512.py',
    '../_base_/schedules/segmentation_160k.py',
    '../_base_/runtimes/segmentation.py',
]

# ---- often changed: the encoder's checkpoint (mmcae's, the authors' or mmpretrain's), the learning rate (for 16 images in all)
model = dict(backbone=dict(init_cfg=dict(checkpoint='checkpoints/cae_vit-base-p16_1600e.pth')))
optim_wrapper = dict(optimizer=dict(lr=1e-4))
