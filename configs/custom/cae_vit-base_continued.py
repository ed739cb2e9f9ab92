# Go on pretraining a released CAE with images of your own: what to do where they are few (thousands to some hundred thousand).
#     mmcae train custom/cae_vit-base_continued data_root=FOLDER \
#         model.init_cfg.checkpoint=/path/to/cae_base.pth
# docs/tokenizers.md, "Start from a released encoder", says when which parts.

_base_ = [
    '../_base_/models/cae_vit-base.py',
    '../_base_/targets/pixels.py',  # or dalle.py, dvae.py, teacher.py: all that follows from the choice is wired below
    '../_base_/schedules/cae_300e.py',
    '../_base_/runtimes/pretraining.py',
]

# ---- often changed
data_root = 'data/images/'
# Any CAE checkpoint: the authors', mmpretrain's or mmcae's. The decoder's head starts afresh where the targets are others.
start_from = dict(type='Pretrained', checkpoint='data/checkpoints/cae_base.pth', allow_missing=['decoder.head'])
frozen_stages = -1  # blocks of the encoder that stay as they are, from the first; 6 or more below some thousand images
max_epochs = 50
batch_size = 64  # per GPU; lr is for 64 in all, see auto_scale_lr
lr = 1.5e-3 * 64 / 2048 / 3  # a third of what pretraining from nothing takes

# ---- possibly changed
crop_scale = (0.2, 1.0)
num_workers = 8

# ---- rarely changed: what follows
model = dict(
    init_cfg=start_from,  # encoder, regressor and decoder; to start these two afresh, move this line into `backbone`
    backbone=dict(frozen_stages=frozen_stages),
    target_generator=_base_.target_generator,
    decoder=dict(num_outputs=_base_.num_outputs),
)
data_preprocessor = dict(
    type='mmcae.ViewPreprocessor',
    mean=[123.675, 116.28, 103.53],  # what the checkpoint was trained with; the authors' have ImageNet's
    std=[58.395, 57.12, 57.375],
    second_mean=_base_.second_mean,
    second_std=_base_.second_std,
)
data_preparation = 'Put your images there, in any tree of folders, or name their folder.'
train_pipeline = [
    dict(type='mmcae.LoadImage'),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='mmcae.TwoViewCrop',
        size=224,
        second_size=_base_.token_size and 14 * _base_.token_size,  # for 14x14 patches; None without a second view
        scale=crop_scale,
        second_interpolation=_base_.second_interpolation,
        backend='torch',  # or 'device', 'pillow': they differ by rounding; docs/loading.md
    ),
    dict(type='mmcae.BlockMaskGenerator', grid=14, num_masked=98),
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
    dict(type='mmcae.WarmupCosineLR', warmup=max_epochs // 10, end=max_epochs, eta_min=1e-6, by_epoch=True, convert_to_iter_based=True)
]
optim_wrapper = dict(optimizer=dict(lr=lr))
auto_scale_lr = dict(base_batch_size=64)
