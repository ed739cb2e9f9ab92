"""CAE v2 with a ViT-S encoder on a folder of your own images, on one GPU, taught by an encoder that you have as a file.

    mmcae train custom/cae_v2_vit-small_folder data_root=FOLDER \
        teacher.checkpoint=/path/to/ViT-B-16.pt

The teacher is CLIP, in OpenAI's archive or Hugging Face's folder; or a model of timm, such as DINOv2's or UNI's ViT, with teacher.model
below; or any encoder of mmcae. Nothing is downloaded. docs/tokenizers.md lists them. What else you may want to change is as in
cae_vit-small_folder.py, but:

    num_masked           a quarter of the patches for small encoders, a half for base and large
    supervise            leave out 'cls' for teachers without one
    complementary        True with num_masked a half: two predictions for each image and pass of the teacher
"""

_base_ = [
    '../_base_/models/cae_v2_vit-base.py',
    '../_base_/targets/clip.py',
    '../_base_/datasets/folder_cae.py',
    '../_base_/runtimes/pretraining.py',
]

# ---- often changed; the images in ../_base_/datasets/folder_cae.py
teacher = dict(
    type='mmcae.Teacher',
    model=dict(type='clip'),  # or dict(type='timm', model_name='vit_small_patch14_reg4_dinov2.lvd142m'), with projected=False
    checkpoint='data/teachers/ViT-B-16.pt',
    projected=True,
)
max_epochs = 300
base_lr = 2e-4  # for 256 images a step
arch, embed_dims = 'small', 384
num_masked = (_base_.image_size // _base_.patch_size) ** 2 // 4

# ---- possibly changed
regressor_layers = 1  # 4 for base and large
supervise = ['cls', 'visible', 'masked']
complementary = False
warmup = min(max(1, max_epochs // 30), max_epochs - 1)
optim_wrapper = dict(
    type='mmcae.AmpOptimWrapper',
    dtype='bfloat16',  # 'float16' on GPUs before NVIDIA's Ampere
    optimizer=dict(type='AdamW', lr=base_lr, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='mmcae.LayerDecayOptimWrapperConstructor',
    clip_grad=dict(max_norm=3.0),
)
param_scheduler = [
    dict(type='mmcae.WarmupCosineLR', warmup=warmup, end=max_epochs, eta_min=1e-6, by_epoch=True, convert_to_iter_based=True)
]
train_cfg = dict(type='mmcae.EpochBasedTrainLoop', max_epochs=max_epochs)
auto_scale_lr = dict(base_batch_size=256, enable=False)
default_hooks = dict(checkpoint=dict(interval=10, max_keep_ckpts=2))  # and the last epoch

# ---- rarely changed: what follows from the above
model = dict(
    backbone=dict(arch=arch, img_size=_base_.image_size, patch_size=_base_.patch_size),
    regressor=dict(in_dims=embed_dims, embed_dims=embed_dims, num_layers=regressor_layers),
    target_generator=teacher,
    supervise=supervise,
    complementary=complementary,
)
# One view, which the teacher reads too.
changes = {'mmcae.TwoViewCrop': dict(second_size=None), 'mmcae.BlockMaskGenerator': dict(num_masked=num_masked)}
train_pipeline = [{**step, **changes.get(step.type, {})} for step in _base_.train_pipeline]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
