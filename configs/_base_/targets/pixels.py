# What CAE predicts: the pixels of each patch, normalised, as in MAE. Needs no tokenizer and no weights.

# ---- often changed: the encoder's patch size, so that both views have the same size
token_size = 16  # pixels of the second view, per side, for each patch of the encoder
target_generator = dict(type='mmcae.PixelTargets', patch_size=token_size, normalize=True)

# ---- rarely changed: they follow from the target
num_outputs = None  # of the decoder: token_size ** 2 times the channels
second_mean = [0.0]  # pixels in [0, 1], however many channels
second_std = [255.0]
second_interpolation = 'bicubic'  # as the first view
