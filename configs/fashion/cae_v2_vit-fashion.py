# cae_v2_vit-digits.py on Fashion-MNIST, taught by the encoder of cae_vit-fashion.py.

_base_ = ['../digits/cae_v2_vit-digits.py', '../_base_/datasets/fashion.py']

data_root = _base_.fashion_root + 'pretrain/'
data_preparation = _base_.fashion_preparation
train_dataloader = dict(dataset=dict(data_root=data_root))
model = dict(target_generator=dict(checkpoint='work_dirs/cae_vit-fashion/iter_1600.pth'))
