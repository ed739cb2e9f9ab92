# Nearest neighbours with the frozen CAE-B on ImageNet-1k. No training:
#     mmcae test knn/knn_vit-base-p16_cae_in1k CHECKPOINT
# where the checkpoint is one of pretraining (mmcae's, the authors' or mmpretrain's), an encoder, or any classifier on CAEViT.

_base_ = [
    '../_base_/models/linear_vit-base.py',
    '../_base_/datasets/imagenet_classification.py',
    '../_base_/runtimes/classification.py',
]

# ---- often changed: the feature, 'cls_token' or 'avg_featmap'; how many labelled images make up the bank; the numbers of neighbours
model = dict(
    backbone=dict(out_type='cls_token', frozen_stages=-1, init_cfg=None),
    neck=None,
    head=None,
)
test_cfg = dict(
    type='mmcae.KNNLoop',
    k=(10, 20),
    temperature=0.07,
    dtype='float32',  # None is faster on a GPU
    bank_dataloader=dict(
        batch_size=256,
        num_workers=8,
        dataset=dict(
            type='mmcae.LabelSubset',
            labels=1.0,
            dataset=dict(type='ImageNet', data_root={{_base_.data_root}}, split='train', pipeline={{_base_.test_pipeline}}),
        ),
    ),
)

# ---- rarely changed
train_dataloader = None
val_dataloader = None
val_evaluator = None
