# cae_vit-digits.py with the tokens of a discrete VAE as targets, which configs/digits/dvae_digits.py trains in two minutes.

_base_ = ['cae_vit-digits.py']

# ---- often changed
target = dict(_delete_=True, type='mmcae.DiscreteVAE', checkpoint='work_dirs/dvae_digits/tokenizer.pth')

# ---- rarely changed
model = dict(target_generator=target, decoder=dict(num_outputs=None))  # as many as the tokenizer has ids
