# The second stage of cae_vit-digits.py: on scenes of 96 pixels, so that the encoder has seen the grid of detection. In the first stage it
# sees 4x4 patches; on the 12x12 of a scene its attention then gathers at the border and the corners in place of the digits.
#     mmcae train digits/cae_scenes_vit-digits

_base_ = ['cae_vit-digits.py']

# ---- often changed
max_iters = 400
base_lr = 5e-4
checkpoint = 'work_dirs/cae_vit-digits/iter_1600.pth'  # made by cae_vit-digits.py
image_size = 96
batch_size = 14  # as many tokens as in 128 tiles

# ---- possibly changed: the schedule, that of the first stage over fewer iterations
optim_wrapper = dict(optimizer=dict(lr=base_lr))
train_cfg = dict(max_iters=max_iters)
param_scheduler = [dict(type='mmcae.WarmupCosineLR', warmup=max_iters // 20, end=max_iters, by_epoch=False)]
default_hooks = dict(checkpoint=dict(interval=max_iters))

# ---- rarely changed
model = dict(backbone=dict(img_size=image_size), init_cfg=dict(type='Pretrained', checkpoint=checkpoint))
changes = {
    'mmcae.TwoViewCrop': dict(size=image_size, second_size=image_size),
    'mmcae.RandomMaskGenerator': dict(grid=image_size // 8),
}
train_pipeline = [{**step, **changes.get(step.type, {})} for step in _base_.train_pipeline]
train_dataloader = dict(batch_size=batch_size, dataset=dict(data_prefix='scenes96', pipeline=train_pipeline))
