# CAE v2-L on ImageNet-1k, 300 epochs, CLIP-L/14 as teacher. The paper reports linear 81.7, fine-tuning 86.7 top-1 and no script: length
# and layer scale are from there; PanDerm trained this model so, with 50 % masked and CLIP at 196 pixels. The rest is that of base.

_base_ = ['cae_v2_vit-base-p16_8xb256-amp-coslr-300e_in1k.py']

# ---- rarely changed: the sizes
latent = dict(embed_dims=1024, num_heads=16, layer_scale_init_value=1e-5)
model = dict(
    backbone=dict(arch='large', layer_scale_init_value=1e-5),
    regressor=dict(in_dims=1024, **latent),
    # 14x14 patches of 14. The other sizes are those of the file: without it they are needed to plan (mmcae plan).
    target_generator=dict(
        checkpoint='data/teachers/ViT-L-14.pt',
        model=dict(img_size=196, patch_size=14, embed_dim=1024, depth=24, num_heads=16, num_classes=768),
    ),
    weight_init='beit',
)
