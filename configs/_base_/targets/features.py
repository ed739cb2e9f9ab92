# What CAE predicts: the features that a frozen model has of each patch, normalised. Any model of timm, or backbone of mmpretrain or mmcae,
# from a local file of weights.

# ---- often changed: the model; its patch size is the token_size below
target_generator = dict(
    type='mmcae.FeatureTargets',
    model=dict(type='timm', model_name='vit_small_patch16_224'),
    checkpoint='data/tokenizers/vit_small_patch16_224.safetensors',
    view_size=224,
)
second_mean = [127.5, 127.5, 127.5]  # what the model was trained with; for most others ImageNet's 123.675, 116.28, 103.53
second_std = [127.5, 127.5, 127.5]  # and 58.395, 57.12, 57.375

# ---- rarely changed: they follow from the target
num_outputs = None  # of the decoder: the width of the features
token_size = 16  # pixels of the second view, per side, for each patch of the encoder
second_interpolation = 'bicubic'
