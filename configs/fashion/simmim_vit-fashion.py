# simmim_vit-digits.py on Fashion-MNIST.

_base_ = ['../digits/simmim_vit-digits.py', '../_base_/datasets/fashion.py']

data_root = _base_.fashion_root + 'pretrain/'
data_preparation = _base_.fashion_preparation
train_dataloader = dict(dataset=dict(data_root=data_root))
