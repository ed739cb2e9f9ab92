# UperNet on CAE's base encoder: the paper's semantic segmentation protocol (arXiv 2202.03026, section 4.3).
# A config that uses it names the checkpoint: model = dict(backbone=dict(init_cfg=dict(checkpoint=PATH))).

# ---- often changed, by overriding the keys of `model` in your own config: num_classes of both heads, drop_path_rate.
# ---- possibly changed: the training crop, here and in the RandomCrop of the dataset's pipeline (docs/segmentation.md, "Another crop").
train_size = (512, 512)  # (height, width) in pixels, multiples of the patch size
norm_cfg = dict(type='SyncBN', requires_grad=True)  # ordinary batch norm where training is not distributed

# ---- rarely changed
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=train_size,
        # Test images smaller than the sliding window are padded to its size at the right and the bottom; the padding is cut off the result.
        test_cfg=dict(size=train_size),
    ),
    backbone=dict(
        type='mmcae.CAEViT',
        arch='base',
        # The checkpoint's position table is resized to this size once, when it is loaded; the bias tables are made for it.
        img_size=train_size,
        patch_size=16,
        out_indices=(3, 5, 7, 11),
        out_type='featmap',
        final_norm=False,
        drop_path_rate=0.1,
        layer_scale_init_value=0.1,
        use_rel_pos_bias=True,
        # Pretraining has no relative position bias: it starts from zero here.
        init_cfg=dict(type='Pretrained', allow_missing=['relative_position_bias_table']),
    ),
    neck=dict(type='mmcae.DeconvPyramid', in_channels=768, norm_cfg=norm_cfg),
    decode_head=dict(
        type='UPerHead',
        in_channels=[768, 768, 768, 768],
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=768,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=dict(
        type='FCNHead',
        in_channels=768,
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='slide', crop_size=train_size, stride=(341, 341)),
)
