# Linear probing: a linear classifier on the cls token of a frozen encoder, after batch norm without scale and shift.
# A config that uses it names the checkpoint: model = dict(backbone=dict(init_cfg=dict(checkpoint=PATH))).

# ---- often changed, by overriding the keys of `model` in your own config: num_classes
# ---- rarely changed
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmcae.CAEViT',
        arch='base',
        img_size=224,
        patch_size=16,
        layer_scale_init_value=0.1,
        out_type='cls_token',
        frozen_stages=12,
        init_cfg=dict(type='Pretrained'),
    ),
    neck=dict(type='ClsBatchNormNeck', input_features=768, affine=False, eps=1e-6),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=768,
        loss=dict(type='CrossEntropyLoss'),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.01, a=-0.04, b=0.04),
    ),
)
