# knn_vit-digits.py on Fashion-MNIST, among 2,000 labelled pictures.

_base_ = ['../digits/knn_vit-digits.py', '../_base_/datasets/fashion.py']

data_root = _base_.fashion_root + 'classification/'
data_preparation = _base_.fashion_preparation
test_dataloader = dict(dataset=dict(data_root=data_root))
test_cfg = dict(bank_dataloader=dict(dataset=dict(dataset=dict(data_root=data_root))))
