# tokenizer_digits.py on Fashion-MNIST: a codebook of 64 grey patches, the targets of cae_vit-fashion.py.
#     mmcae train fashion/tokenizer_fashion

_base_ = ['../digits/tokenizer_digits.py', '../_base_/datasets/fashion.py']

data_root = _base_.fashion_root + 'pretrain/'
data_preparation = _base_.fashion_preparation
train_dataloader = dict(dataset=dict(data_root=data_root))
