# What CAE predicts: the tokens of a discrete VAE that configs/tokenizer/dvae_folder.py trained on images of your own.

# ---- often changed
target_generator = dict(type='mmcae.DiscreteVAE', checkpoint='work_dirs/dvae_folder/epoch_30.pth')

# ---- rarely changed: they follow from the target
num_outputs = None  # of the decoder: the vocabulary, whatever the checkpoint's is
token_size = 8  # pixels of the second view, per side, for each patch of the encoder
second_mean = [0.0]  # pixels in [0, 1], however many channels
second_std = [255.0]
second_interpolation = 'lanczos'
