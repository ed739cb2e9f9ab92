# kNN segmentation of ADE20K by the frozen CAE-B: each patch takes the votes of its nearest labelled patches. No training:
#     mmcae test segmentation_probe/knn_vit-base-p16_cae_ade20k-512x512 CHECKPOINT
# where the checkpoint is one of pretraining (mmcae's, the authors' or mmpretrain's), an encoder, or any model on CAEViT. No figures of it
# are reported here. k is chosen on a fifth of the training images; the validation images are reported, as is usual for ADE20K.

_base_ = ['../_base_/datasets/ade20k_512x512.py', '../_base_/runtimes/segmentation.py']

# ---- often changed: images at a time, and how many labelled patches are learnt from; they decide about the memory
batch_size = 16
patches = 100_000

# ---- possibly changed: the size that each image is squeezed to; label maps keep theirs, at which predictions are scored
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(512, 512), keep_ratio=False),
    dict(type='mmcae.LoadLabelMap'),
    dict(type='PackSegInputs'),
]

# ---- rarely changed
model = dict(
    type='mmpretrain.ImageClassifier',
    backbone=dict(type='mmcae.CAEViT', arch='base', img_size=224, patch_size=16, layer_scale_init_value=0.1, out_type='featmap'),
)
data_preprocessor = dict(type='mmpretrain.ClsDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
workers = dict(batch_size=batch_size, num_workers=_base_.num_workers)
test_cfg = dict(
    type='mmcae.SegmentationProbeLoop',
    probe='knn',
    patches=patches,
    dtype='float32',  # None is faster on a GPU
    bank_dataloader=dict(dataset={**_base_.train_dataloader.dataset, 'pipeline': pipeline}, **workers),
)
test_dataloader = dict(dataset=dict(pipeline=pipeline), **workers)
test_evaluator = []
train_dataloader = None
val_dataloader = None
val_evaluator = None
