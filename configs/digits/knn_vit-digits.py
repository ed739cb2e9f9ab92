# Nearest neighbours with the frozen small encoder on the embedded digits, among 2,000 labelled ones. No training:
#     mmcae test digits/knn_vit-digits CHECKPOINT
# where the checkpoint is one of pretraining, an encoder, or any model of this repository with such an encoder.
# Judges on test; to choose on val: --cfg-options test_split=val

_base_ = ['../_base_/models/linear_vit-base.py', '../_base_/datasets/digits_classification.py', '../_base_/runtimes/classification.py']

# ---- often changed
model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=96, num_layers=4, num_heads=4),
        img_size=32,
        patch_size=8,
        out_type='avg_featmap',
        frozen_stages=-1,  # nothing is trained; several processes refuse a model without trainable weights
        init_cfg=None,
    ),
    neck=None,
    head=None,
)
test_cfg = dict(
    type='mmcae.KNNLoop',
    k=(10, 20),
    temperature=0.07,
    bank_dataloader=dict(
        batch_size=250,
        dataset=dict(
            type='mmcae.LabelSubset',
            labels=2000,
            dataset=dict(type='CustomDataset', data_root={{_base_.data_root}}, data_prefix='train', pipeline={{_base_.test_pipeline}}),
        ),
    ),
)

# ---- rarely changed
test_dataloader = dict(num_workers=0, persistent_workers=False)
train_dataloader = None
val_dataloader = None
val_evaluator = None
