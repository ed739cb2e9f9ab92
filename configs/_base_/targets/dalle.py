# What CAE predicts: the tokens of DALL-E's tokenizer, as in the paper. For photographs.
# In place of this file name one of its neighbours (dvae.py, pixels.py, teacher.py): all set the same variables, which recipes wire.

# ---- often changed
# On a machine without the file the run stops and says how to prepare it.
target_generator = dict(type='mmcae.DALLETokenizer', checkpoint='data/tokenizers/dalle_encoder.pth')

# ---- rarely changed: they follow from the target
num_outputs = 8192  # of the decoder: the vocabulary
token_size = 8  # pixels of the second view, per side, for each patch of the encoder
second_mean = [-31.875, -31.875, -31.875]  # DALL-E's 0.8 * x + 0.1 of x in [0, 1]
second_std = [318.75, 318.75, 318.75]
second_interpolation = 'lanczos'
