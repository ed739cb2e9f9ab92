# UperNet on DINOv2's ViT-S: patches of 14 pixels, crops of 504. Or another ViT of timm: model.backbone.model_name, train_size, width.

_base_ = './upernet_vit-base.py'

# ---- often changed
checkpoint = 'checkpoints/dinov2_vits14_reg4_pretrain.pth'  # of timm, Meta, Hugging Face or mmcae

# ---- possibly changed
train_size = (504, 504)  # multiples of two patches of 14; the same in the RandomCrop of the dataset's pipeline
width = 384

# ---- rarely changed
model = dict(
    data_preprocessor=dict(size=train_size, test_cfg=dict(size=train_size)),
    backbone=dict(
        _delete_=True,
        type='mmcae.TimmEncoder',
        model_name='vit_small_patch14_reg4_dinov2',
        img_size=train_size,  # the checkpoint's position table is resized to it when it is loaded
        out_indices=(3, 5, 7, 11),
        out_type='featmap',  # cls and registers left out
        final_norm=False,
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    neck=dict(in_channels=width),
    decode_head=dict(in_channels=[width] * 4, channels=width),
    auxiliary_head=dict(in_channels=width),
    test_cfg=dict(crop_size=train_size, stride=(336, 336)),
)
