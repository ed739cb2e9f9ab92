# linear_segmentation_vit-digits.py on scenes of Fashion-MNIST.

_base_ = ['knn_segmentation_vit-fashion.py']

test_cfg = dict(probe='linear')
