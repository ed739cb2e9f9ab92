# CAE v2-T on ImageNet-1k, 300 epochs, with CLIP-B/16 as teacher: 192 wide with 12 heads, 30 of 196 patches masked, and a regressor of one
# block that is 96 wide. All else as in the recipe of the base model.

_base_ = ['cae_v2_vit-base-p16_8xb256-amp-coslr-300e_in1k.py']

# ---- often changed
num_masked = 30  # of 196 patches: the smaller the model, the fewer

# ---- rarely changed: the sizes
model = dict(backbone=dict(arch='tiny'), regressor=dict(in_dims=192, embed_dims=96, num_layers=1))
masks = dict(num_masked=num_masked)
train_pipeline = [{**step, **masks} if step.type == 'mmcae.BlockMaskGenerator' else step for step in _base_.train_pipeline]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
