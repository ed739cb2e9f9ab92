# CAE with a small encoder for the embedded digits: 32x32 tiles in patches of 8.

# ---- often changed
embed_dims = 96
num_layers = 4
num_heads = 4
layer_scale = 0.05

# ---- possibly changed
encoder = dict(
    type='mmcae.CAEViT',
    arch=dict(embed_dims=embed_dims, num_layers=num_layers, num_heads=num_heads),
    img_size=32,
    patch_size=8,
    layer_scale_init_value=layer_scale,
)
model = dict(
    type='mmcae.CAE',
    backbone=encoder,
    regressor=dict(
        type='mmcae.LatentContextualRegressor',
        in_dims=embed_dims,
        embed_dims=embed_dims,
        num_layers=1,
        num_heads=num_heads,
        layer_scale_init_value=layer_scale,
    ),
    decoder=dict(
        type='mmcae.CAEDecoder',
        embed_dims=embed_dims,
        num_outputs=64,
        num_layers=1,
        num_heads=num_heads,
        layer_scale_init_value=layer_scale,
    ),
    target_generator=dict(type='mmcae.PatchCodebook', checkpoint=None),
    align_loss_weight=2.0,
)
