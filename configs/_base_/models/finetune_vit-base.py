# Fine-tuning: everything but the positions is trained; the mean of the patch tokens is normalised by the encoder's own last norm.
# A config that uses it names the checkpoint: model = dict(backbone=dict(init_cfg=dict(checkpoint=PATH))).

# ---- often changed, by overriding the keys of `model` in your own config: num_classes, drop_path_rate
# ---- rarely changed
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmcae.CAEViT',
        arch='base',
        img_size=224,
        patch_size=16,
        layer_scale_init_value=0.1,
        drop_path_rate=0.1,
        out_type='avg_featmap',
        use_rel_pos_bias=True,
        # Pretraining has no relative position bias: it starts from zero here.
        init_cfg=dict(type='Pretrained', allow_missing=['relative_position_bias_table']),
    ),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=768,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        # 0.02 x 0.001: the classifier starts close to silent. Without a cut (a, b) mmengine gives a weight of -2 in one of 20 classifiers.
        init_cfg=dict(type='TruncNormal', layer='Linear', std=2e-5, a=-8e-5, b=8e-5),
    ),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
