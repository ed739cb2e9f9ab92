# Cascade Mask R-CNN on CAE's large encoder: as the base one, with what the paper changes.

_base_ = './cascade_mask_rcnn_vit-base.py'

model = dict(
    backbone=dict(arch='large', out_indices=(7, 11, 15, 23), layer_scale_init_value=1e-5),
    neck=[
        dict(type='mmcae.DeconvPyramid', in_channels=1024, norm_cfg=dict(type='SyncBN', requires_grad=True)),
        dict(type='FPN', in_channels=[1024, 1024, 1024, 1024], out_channels=256, num_outs=5),
    ],
)
