# cae_vit-digits.py with the normalised pixels of each patch as targets, as in MAE. Needs no tokenizer.

_base_ = ['cae_vit-digits.py']

# ---- often changed
target = dict(_delete_=True, type='mmcae.PixelTargets', patch_size=8, normalize=True)

# ---- rarely changed
model = dict(target_generator=target, decoder=dict(num_outputs=None))  # as many as a patch has numbers
