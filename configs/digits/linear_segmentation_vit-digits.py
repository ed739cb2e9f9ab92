# Linear segmentation of digit scenes: one linear layer on frozen patch features, for each of ten learning rates, on the last block and on
# the last four, chosen on val:
#     mmcae test digits/linear_segmentation_vit-digits CHECKPOINT
# The layer is trained in the test, within seconds; the checkpoint may be any that knn_segmentation_vit-digits.py takes.

_base_ = ['knn_segmentation_vit-digits.py']

test_cfg = dict(probe='linear')
