# kNN segmentation of digit scenes by frozen patch features: each patch takes the votes of its nearest labelled patches. No training:
#     mmcae test digits/knn_segmentation_vit-digits CHECKPOINT
# where the checkpoint is one of pretraining, an encoder, or any model of this repository with such an encoder.
# k, out of 1, 3, 10 and 30, is chosen on val. Judges on test; on val: --cfg-options test_split=val

_base_ = ['../_base_/datasets/digits_segmentation.py', '../_base_/runtimes/segmentation.py']

# ---- often changed
model = dict(
    type='mmpretrain.ImageClassifier',
    backbone=dict(
        type='mmcae.CAEViT',
        arch=dict(embed_dims=96, num_layers=4, num_heads=4),
        img_size=32,
        patch_size=8,
        out_type='featmap',
    ),
)
loader = dict(batch_size=50, num_workers=0, persistent_workers=False)
test_cfg = dict(
    type='mmcae.SegmentationProbeLoop',
    probe='knn',
    patches=20_000,
    bank_dataloader=dict(dataset={{_base_.train_dataloader.dataset}}, **loader),
    val_dataloader=dict(dataset={{_base_.val_dataloader.dataset}}, **loader),
)

# ---- rarely changed
data_preprocessor = dict(type='mmpretrain.ClsDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
test_dataloader = loader
test_evaluator = []
train_dataloader = None
val_dataloader = None
val_evaluator = None
