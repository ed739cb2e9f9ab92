# BEiT with the encoder, targets and images of cae_vit-digits.py.
#     mmcae train digits/beit_vit-digits

_base_ = ['cae_vit-digits.py']

# ---- rarely changed
model = dict(_delete_=True, type='mmcae.BEiT', backbone=_base_.encoder, target_generator=_base_.model.target_generator)
