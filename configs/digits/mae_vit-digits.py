# The baseline: mmpretrain's MAE with the encoder size, the images and the optimizer of cae_vit-digits.py, and as many tokens through the
# encoder. Of the 16 patches of an image CAE encodes 5 visible ones and, for the alignment, the 11 masked ones, each time with the cls
# token: 18 tokens. MAE encodes 5 and the cls token, so it gets three times the iterations. The count favours MAE: CAE's 12 alignment tokens
# carry no gradient.
# In other configs its encoder takes model.backbone.layer_scale_init_value=0 (mmpretrain's ViT has no layer scale):
#     mmcae train digits/linear_vit-digits model.backbone.layer_scale_init_value=0 \
#         model.backbone.init_cfg.checkpoint=work_dirs/mae_vit-digits/iter_4800.pth

_base_ = ['cae_vit-digits.py']

# ---- often changed
max_iters = 4800
mask_ratio = 11 / 16

# ---- possibly changed: the schedule, the same as CAE's over more iterations
train_cfg = dict(max_iters=max_iters)
param_scheduler = [dict(type='mmcae.WarmupCosineLR', warmup=max_iters // 20, end=max_iters, by_epoch=False)]
default_hooks = dict(checkpoint=dict(interval=max_iters))

# ---- rarely changed
model = dict(
    _delete_=True,
    type='MAE',
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=False),
    backbone=dict(
        type='MAEViT',
        arch=dict(embed_dims=96, num_layers=4, num_heads=4, feedforward_channels=384),
        img_size=32,
        patch_size=8,
        mask_ratio=mask_ratio,
    ),
    neck=dict(
        type='MAEPretrainDecoder',
        num_patches=16,
        patch_size=8,
        embed_dim=96,
        decoder_embed_dim=96,
        decoder_depth=2,
        decoder_num_heads=4,
    ),
    head=dict(type='MAEPretrainHead', norm_pix=True, patch_size=8, loss=dict(type='PixelReconstructionLoss', criterion='L2')),
    init_cfg=[
        dict(type='Xavier', layer='Linear', distribution='uniform'),
        dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0),
    ],
)
data_preprocessor = dict(_delete_=True)  # the model has its own, for one view
train_pipeline = [
    dict(type='mmcae.LoadImage', cache=True),
    dict(
        type='RandomResizedCrop',
        scale={{_base_.image_size}},
        crop_ratio_range={{_base_.crop_scale}},
        backend='pillow',
        interpolation={{_base_.interpolation}},
    ),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
