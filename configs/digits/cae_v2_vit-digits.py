# CAE v2 on the embedded digits, taught by the encoder that cae_vit-digits.py makes.
#     mmcae train digits/cae_v2_vit-digits

_base_ = ['cae_teacher_vit-digits.py']

# ---- often changed
supervise = ['cls', 'visible', 'masked']
complementary = False  # needs mask_ratio=0.5

# ---- rarely changed
teacher = {key: value for key, value in _base_.target.items() if key != '_delete_'}
model = dict(
    _delete_=True,
    type='mmcae.CAEv2',
    backbone=_base_.encoder,
    regressor=_base_.model.regressor,
    target_generator={**teacher, 'loss': 'cosine'},
    supervise=supervise,
    complementary=complementary,
)
