# knn_segmentation_vit-digits.py on scenes of Fashion-MNIST.

_base_ = ['../digits/knn_segmentation_vit-digits.py', '../_base_/datasets/fashion.py']

data_root = _base_.fashion_scenes_root
data_preparation = _base_.fashion_scenes_preparation
scenes = dict(data_root=data_root, metainfo=dict(classes=('background', *_base_.fashion_classes)))
test_dataloader = dict(dataset=scenes)
test_cfg = dict(bank_dataloader=dict(dataset=scenes), val_dataloader=dict(dataset=scenes))
