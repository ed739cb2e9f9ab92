# CAE with a ViT-S encoder on ImageNet-1k, 300 epochs: 384 wide with 12 heads, as in the authors' code.
# The paper has no such model: this is the recipe of the base model with narrower parts.

_base_ = ['cae_vit-base-p16_32xb64-amp-coslr-300e_in1k.py']

# ---- rarely changed: the sizes
model = dict(
    backbone=dict(arch='small'),
    regressor=dict(in_dims=384, embed_dims=384),
    decoder=dict(embed_dims=384),
)
