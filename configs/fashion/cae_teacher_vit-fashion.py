# cae_teacher_vit-digits.py on Fashion-MNIST: a second round, with the encoder of cae_vit-fashion.py as the frozen model.

_base_ = ['../digits/cae_teacher_vit-digits.py', '../_base_/datasets/fashion.py']

data_root = _base_.fashion_root + 'pretrain/'
data_preparation = _base_.fashion_preparation
train_dataloader = dict(dataset=dict(data_root=data_root))
model = dict(target_generator=dict(checkpoint='work_dirs/cae_vit-fashion/iter_1600.pth'))
