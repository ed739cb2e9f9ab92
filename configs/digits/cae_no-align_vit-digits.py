# CAE without the alignment of predicted and encoded latents, to see what the alignment is worth; all else as in cae_vit-digits.py.

_base_ = ['cae_vit-digits.py']

# ---- often changed
model = dict(align_loss_weight=0.0)
