# cae_vit-digits.py on Fashion-MNIST, after tokenizer_fashion.py.
#     mmcae train fashion/cae_vit-fashion

_base_ = ['../digits/cae_vit-digits.py', '../_base_/datasets/fashion.py']

data_root = _base_.fashion_root + 'pretrain/'
data_preparation = _base_.fashion_preparation
train_dataloader = dict(dataset=dict(data_root=data_root))
tokenizer = 'work_dirs/tokenizer_fashion/tokenizer.pth'
model = dict(target_generator=dict(checkpoint=tokenizer))
