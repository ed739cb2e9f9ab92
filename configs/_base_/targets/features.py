# What CAE predicts: the features that a frozen model has of each patch, normalised. Any model of timm, or backbone of mmpretrain or mmcae,
# from a local file of weights.

# ---- often changed: the model, and the mean and standard deviation of the pixels that it was trained with
second_mean = [127.5, 127.5, 127.5]  # for most others ImageNet's 123.675, 116.28, 103.53
second_std = [127.5, 127.5, 127.5]  # and 58.395, 57.12, 57.375
token_size = 16  # pixels of the second view, per side, for each patch of the encoder: the model's patch size
target_generator = dict(
    type='mmcae.FeatureTargets',
    model=dict(type='timm', model_name='vit_small_patch16_224'),
    checkpoint='data/tokenizers/vit_small_patch16_224.safetensors',
    view_size=14 * token_size,  # for 14x14 patches
    mean=second_mean,
    std=second_std,
)

# ---- rarely changed: they follow from the target
num_outputs = None  # of the decoder: the width of the features
second_interpolation = 'bicubic'
