"""CAE with a ViT-S encoder on a folder of your own images, on one GPU. No labels are needed and, with pixels as targets, no tokenizer.

    mmcae train custom/cae_vit-small_folder data_root=FOLDER

The folder may hold any tree of JPEG, PNG, WebP, TIFF, BMP or PPM files, in any mixture of sizes and modes. What you may want to change:

    data_root, ann_file        where the images are; a list of them
    batch_size, num_workers    what the GPU holds, what the CPU has; the learning rate is for 256 images, --auto-scale-lr adapts it
    max_epochs                 about 100,000 steps do what can be done: 300 epochs of 100,000 images; more epochs of fewer images
    crop_scale                 (0.3, 1.0) where objects fill the image or all images look alike
    arch, embed_dims           'tiny' and 192 for a few thousand images, 'base' and 768 for a million
    image_size, patch_size     with another patch size also token_size, which is the target's
    max_bad_files              the share of unreadable files at which the run stops

Other targets: replace pixels.py below by dvae.py (tokens of a discrete VAE that configs/tokenizer/dvae_folder.py trains on the same folder)
or one of its neighbours. docs/own_images.md says more, docs/tokenizers.md compares the targets.
"""

_base_ = [
    '../_base_/models/cae_vit-base.py',
    '../_base_/targets/pixels.py',
    '../_base_/datasets/folder_cae.py',
    '../_base_/runtimes/pretraining.py',
]

# ---- often changed; the images in ../_base_/datasets/folder_cae.py
max_epochs = 300
base_lr = 2e-4  # for 256 images a step
arch, embed_dims = 'small', 384

# ---- possibly changed
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
grid = _base_.image_size // _base_.patch_size
model = dict(
    backbone=dict(arch=arch, img_size=_base_.image_size, patch_size=_base_.patch_size),
    regressor=dict(in_dims=embed_dims, embed_dims=embed_dims),
    decoder=dict(embed_dims=embed_dims, num_outputs=_base_.num_outputs),
    target_generator=_base_.target_generator,
)
data_preprocessor = dict(second_mean=_base_.second_mean, second_std=_base_.second_std)
second_view = dict(second_size=_base_.token_size and grid * _base_.token_size, second_interpolation=_base_.second_interpolation)
train_pipeline = [{**step, **second_view} if step.type == 'mmcae.TwoViewCrop' else step for step in _base_.train_pipeline]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
