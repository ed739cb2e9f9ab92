# Nearest neighbours with the frozen CAE-L on ImageNet-1k. No training:
#     mmcae test knn/knn_vit-large-p16_cae_in1k CHECKPOINT
# All else as for the base model.

_base_ = ['knn_vit-base-p16_cae_in1k.py']

# ---- rarely changed: the size
model = dict(backbone=dict(arch='large'))
