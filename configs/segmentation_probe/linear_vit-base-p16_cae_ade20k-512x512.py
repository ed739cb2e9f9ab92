# Linear segmentation of ADE20K: one linear layer on frozen patch features of CAE-B, for each of ten learning rates, on the last block and
# on the last four:
#     mmcae test segmentation_probe/linear_vit-base-p16_cae_ade20k-512x512 CHECKPOINT
# The layer is trained in the test; all else as for kNN.

_base_ = ['knn_vit-base-p16_cae_ade20k-512x512.py']

test_cfg = dict(probe='linear')
