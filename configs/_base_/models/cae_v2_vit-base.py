# CAE v2 with a ViT-B encoder for 224x224 images in patches of 16. Its teacher is one of ../targets/ of type mmcae.Teacher.

# ---- often changed, by overriding the keys of `model` in your own config: arch and the widths that go with it
# ---- rarely changed
model = dict(
    type='mmcae.CAEv2',
    backbone=dict(
        type='mmcae.CAEViT',
        arch='base',
        img_size=224,
        patch_size=16,
        drop_path_rate=0.1,
        layer_scale_init_value=0.1,
    ),
    regressor=dict(
        type='mmcae.LatentContextualRegressor',
        in_dims=768,
        embed_dims=768,
        num_layers=4,
        num_heads=12,
        drop_path_rate=0.1,
        layer_scale_init_value=0.1,
    ),
    supervise=['cls', 'visible', 'masked'],
    weight_init='xavier',
)
