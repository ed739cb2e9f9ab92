# I-JEPA with the encoder and images of cae_vit-digits.py. Needs no tokenizer: the encoder's own average makes the targets.
#     mmcae train digits/ijepa_vit-digits

_base_ = ['cae_vit-digits.py']

# ---- often changed: of each step the average takes this share; the blocks to predict, and the patches to predict them from
ema_momentum = 0.004
target_block = 2
num_visible = 5

# ---- rarely changed
model = dict(
    _delete_=True,
    type='mmcae.IJEPA',
    backbone=_base_.encoder,
    predictor=dict(type='mmcae.JEPAPredictor', in_dims=_base_.embed_dims, embed_dims=48, num_layers=2, num_heads=_base_.num_heads),
    ema=dict(momentum=ema_momentum),
)
train_pipeline = [
    _base_.train_pipeline[0],
    dict(_base_.train_pipeline[1], second_size=None),
    dict(type='mmcae.MultiBlockMaskGenerator', grid=_base_.image_size // _base_.patch_size, block=target_block, num_visible=num_visible),
    dict(type='PackInputs', algorithm_keys=['target_blocks']),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))  # no target but the encoder's view
