# linear_vit-digits.py on Fashion-MNIST, with 2,000 labels.

_base_ = ['../digits/linear_vit-digits.py', '../_base_/datasets/fashion.py']

data_root = _base_.fashion_root + 'classification/'
data_preparation = _base_.fashion_preparation
train_dataloader = dict(dataset=dict(dataset=dict(data_root=data_root)))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = dict(dataset=dict(data_root=data_root))
model = dict(backbone=dict(init_cfg=dict(checkpoint='work_dirs/cae_vit-fashion/iter_1600.pth')))
