# What is predicted: the features that a frozen encoder has of each patch, by squared error. OpenAI's CLIP, any model of timm, or a backbone
# of mmcae or mmpretrain, from a local file of weights. Its view is made of the encoder's own.

# ---- often changed
target_generator = dict(
    type='mmcae.Teacher',
    model=dict(type='timm', model_name='vit_small_patch16_224'),  # or dict(type='clip'), or dict(type='mmcae.CAEViT', arch='base'), ...
    checkpoint='data/tokenizers/vit_small_patch16_224.safetensors',
    loss='mse',  # of normalised features; or 'cosine'
)

# ---- rarely changed: they follow from the target
num_outputs = None  # of the decoder: the width of the features
token_size = None  # no second view
second_mean, second_std = [0.0], [255.0]
second_interpolation = 'bicubic'
