# UperNet on CAE's large encoder: as the base one, with what the paper changes.

_base_ = './upernet_vit-base.py'

model = dict(
    backbone=dict(arch='large', out_indices=(7, 11, 15, 23), drop_path_rate=0.15, layer_scale_init_value=1e-5),
    neck=dict(in_channels=1024),
    decode_head=dict(in_channels=[1024, 1024, 1024, 1024], channels=1024),
    auxiliary_head=dict(in_channels=1024),
)
