# SimMIM with the encoder and images of cae_vit-digits.py: the pixels themselves as targets. Needs no tokenizer.
#     mmcae train digits/simmim_vit-digits

_base_ = ['cae_vit-digits.py']

# ---- rarely changed
model = dict(
    _delete_=True,
    type='mmcae.SimMIM',
    backbone=_base_.encoder,
    target_generator=dict(type='mmcae.PixelTargets', patch_size=8, normalize=False),
)
