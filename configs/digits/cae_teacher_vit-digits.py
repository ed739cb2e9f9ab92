# cae_vit-digits.py with the features of a frozen encoder as targets: here those of the encoder that cae_vit-digits.py itself makes, so that
# this is a second round. Any other model of timm or mmpretrain goes the same way.

_base_ = ['cae_vit-digits.py']

# ---- often changed
target = dict(
    _delete_=True,
    type='mmcae.Teacher',
    model=dict(type='mmcae.CAEViT', arch=dict(embed_dims=96, num_layers=4, num_heads=4), img_size=32, patch_size=8),
    checkpoint='work_dirs/cae_vit-digits/iter_1600.pth',
    loss='mse',
)

# ---- rarely changed
model = dict(target_generator=target, decoder=dict(num_outputs=None))  # as many as the features are wide
train_pipeline = [{**step, 'second_size': None} if step.type == 'mmcae.TwoViewCrop' else step for step in _base_.train_pipeline]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))  # the teacher reads the encoder's view
