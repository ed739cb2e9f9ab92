# Attentive probing: one learned query reads all tokens of a frozen encoder, a linear classifier follows.
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
        out_type='raw',
        frozen_stages=12,
        init_cfg=dict(type='Pretrained'),
    ),
    head=dict(type='mmcae.AttentiveClsHead', num_classes=1000, in_channels=768, num_heads=12, loss=dict(type='CrossEntropyLoss')),
)
