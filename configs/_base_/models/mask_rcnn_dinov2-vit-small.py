# Mask R-CNN on DINOv2's ViT-S, or another ViT of timm (model.backbone.model_name, patch_size, width): images are padded to multiples of two
# patches, and the pyramid makes maps of a quarter, a half, one and two of them.

_base_ = './mask_rcnn_vit-base.py'

# ---- often changed
checkpoint = 'checkpoints/dinov2_vits14_reg4_pretrain.pth'  # of timm, Meta, Hugging Face or mmcae
patch_size = 14  # of the encoder
width = 384  # of its tokens

# ---- possibly changed
norm_cfg = dict(type='SyncBN', requires_grad=True)  # becomes ordinary batch norm on one device

# ---- rarely changed
strides = [patch_size / 4, patch_size / 2, patch_size, patch_size * 2]
model = dict(
    data_preprocessor=dict(pad_size_divisor=2 * patch_size),
    backbone=dict(
        _delete_=True,
        type='mmcae.TimmEncoder',
        model_name='vit_small_patch14_reg4_dinov2',
        img_size=518,  # of the checkpoint: the position table is resized from it to the size of every batch
        out_indices=(3, 5, 7, 11),
        out_type='featmap',  # cls and registers left out
        final_norm=False,
        drop_path_rate=0.1,
        with_cp=True,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    neck=[
        dict(type='mmcae.DeconvPyramid', in_channels=width, norm_cfg=norm_cfg),
        dict(type='FPN', in_channels=[width] * 4, out_channels=256, num_outs=5),
    ],
    rpn_head=dict(anchor_generator=dict(strides=[*strides, patch_size * 4])),
    roi_head=dict(
        bbox_roi_extractor=dict(featmap_strides=strides),
        mask_roi_extractor=dict(featmap_strides=strides),
    ),
)
