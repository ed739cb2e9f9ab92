# CAE on other images than square RGB ones: grey or with many channels, of other proportions, in other patches.
#     mmcae train custom/cae_vit-small_channels data_root=FOLDER
# As it stands: grey images of 192x256 pixels. Copy the file and change the first block; everything below follows from it.

_base_ = [
    '../_base_/models/cae_vit-base.py',
    '../_base_/targets/pixels.py',  # or dvae.py, trained with as many channels
    '../_base_/schedules/cae_300e.py',
    '../_base_/runtimes/pretraining.py',
]

# ---- often changed
data_root = 'data/images/'
channels = 1  # 1: grey, of colour images the luma; others: TIFF files with so many channels, of 8 or 16 bits
mean, std = [127.5], [50.0]  # of the pixels, 16 bits counted as 0 to 255: one value for all channels, or one for each
image_size = (192, 256)  # (height, width), multiples of the patch size
patch_size = 16  # and of the target, in ../_base_/targets/pixels.py
max_epochs = 300
batch_size = 64  # per GPU; lr is for 64 in all, see auto_scale_lr

# ---- possibly changed
crop_scale = (0.2, 1.0)
mask_ratio = 0.5
num_workers = 8

# ---- rarely changed: what follows
grid = (image_size[0] // patch_size, image_size[1] // patch_size)
second_size = (grid[0] * _base_.token_size, grid[1] * _base_.token_size)
proportion = image_size[1] / image_size[0]
model = dict(
    backbone=dict(arch='small', img_size=image_size, patch_size=patch_size, in_channels=channels),
    regressor=dict(in_dims=384, embed_dims=384),
    decoder=dict(embed_dims=384, num_outputs=_base_.num_outputs),
    target_generator=dict(_base_.target_generator, in_channels=channels),
)
data_preprocessor = dict(type='mmcae.ViewPreprocessor', mean=mean, std=std, second_mean=_base_.second_mean, second_std=_base_.second_std)
data_preparation = 'Put your images there, in any tree of folders, or name their folder.'
train_pipeline = [
    dict(type='mmcae.LoadImage', channels=channels),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='mmcae.TwoViewCrop',
        size=image_size,
        second_size=second_size,
        scale=crop_scale,
        ratio=(proportion * 3 / 4, proportion * 4 / 3),
        second_interpolation=_base_.second_interpolation,
        backend='torch',  # or 'device', 'pillow': they differ by rounding; docs/loading.md
    ),
    dict(type='mmcae.BlockMaskGenerator', grid=grid, num_masked=int(mask_ratio * grid[0] * grid[1])),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=num_workers,
    persistent_workers=num_workers > 0,
    pin_memory=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    drop_last=True,
    collate_fn=dict(type='mmcae.collate_views'),
    dataset=dict(type='mmcae.ImageFolder', data_root=data_root, pipeline=train_pipeline),
)
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='mmcae.WarmupCosineLR', warmup=max_epochs // 30, end=max_epochs, eta_min=1e-6, by_epoch=True, convert_to_iter_based=True)
]
optim_wrapper = dict(optimizer=dict(lr=1.5e-3 * 64 / 2048))
auto_scale_lr = dict(base_batch_size=64)
