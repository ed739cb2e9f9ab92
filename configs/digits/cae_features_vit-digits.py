# cae_vit-digits.py with the features of a frozen model as targets: here those of the encoder that cae_vit-digits.py itself makes, so that
# this is a second round. Any other model of timm or mmpretrain goes the same way.

_base_ = ['cae_vit-digits.py']

# ---- often changed
mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]  # what the frozen model was trained with
target = dict(
    _delete_=True,
    type='mmcae.FeatureTargets',
    model=dict(type='mmcae.CAEViT', arch=dict(embed_dims=96, num_layers=4, num_heads=4), img_size=32, patch_size=8, out_type='featmap'),
    checkpoint='work_dirs/cae_vit-digits/iter_1600.pth',
    view_size=32,
    mean=mean,
    std=std,
)

# ---- rarely changed
model = dict(target_generator=target, decoder=dict(num_outputs=None))  # as many as the features are wide
data_preprocessor = dict(second_mean=mean, second_std=std)
