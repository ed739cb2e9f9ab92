# mask_rcnn_vit-digits.py on scenes of Fashion-MNIST.

_base_ = ['../digits/mask_rcnn_vit-digits.py', '../_base_/datasets/fashion.py']

data_root = _base_.fashion_scenes_root
data_preparation = _base_.fashion_scenes_preparation
scenes = dict(data_root=data_root, metainfo=dict(classes=_base_.fashion_classes))
train_dataloader = dict(dataset=scenes)
val_dataloader = dict(dataset=scenes)
test_dataloader = dict(dataset=scenes)
val_evaluator = dict(ann_file=data_root + 'annotations/scenes96_val.json')
test_evaluator = dict(ann_file=data_root + f'annotations/scenes96_{_base_.test_split}.json')
# Digits are upright; shoes are as wide as trousers are high.
model = dict(rpn_head=dict(anchor_generator=dict(ratios=[0.4, 0.63, 1.0, 1.6, 2.5])))
