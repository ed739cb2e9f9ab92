# CAE-L on ImageNet-1k, 1600 epochs. The authors' figures: linear 77.8, attentive 81.2, fine-tuning 86.2 top-1.
# As the authors intended it: a backslash is missing in their script, so that it never passes on the width of regressor and decoder (1024),
# their 16 heads, and BEiT's initialisation. Checkpoints made either way can be read and continued.

_base_ = ['cae_vit-base-p16_32xb64-amp-coslr-300e_in1k.py']

# ---- possibly changed: the length
train_cfg = dict(max_epochs=1600)
param_scheduler = [dict(type='mmcae.WarmupCosineLR', warmup=40, end=1600, eta_min=1e-5, by_epoch=True, convert_to_iter_based=True)]

# ---- rarely changed: the sizes
latent = dict(embed_dims=1024, num_heads=16, layer_scale_init_value=1e-5)
model = dict(
    backbone=dict(arch='large', layer_scale_init_value=1e-5),
    regressor=dict(in_dims=1024, **latent),
    decoder=latent,
    weight_init='beit',
)
