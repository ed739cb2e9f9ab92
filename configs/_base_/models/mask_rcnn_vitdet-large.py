# Mask R-CNN on CAE's large encoder as ViTDet has it: as the base one, with what ViTDet changes.

_base_ = './mask_rcnn_vitdet-base.py'

model = dict(
    backbone=dict(arch='large', global_blocks=(5, 11, 17, 23), out_indices=(23,), drop_path_rate=0.4, layer_scale_init_value=1e-5),
    neck=dict(in_channels=1024),
)
