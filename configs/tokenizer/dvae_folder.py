"""A discrete VAE on a folder of your own images: tokens for CAE where DALL-E's do not fit. Labels are not needed.

    mmcae train tokenizer/dvae_folder data_root=FOLDER

The folder may hold any tree of JPEG, PNG, WebP, TIFF, BMP or PPM files; ann_file takes a list of them instead. The checkpoint goes into a
pretraining config by one line: the base `../_base_/targets/dvae.py`, which names it. docs/tokenizers.md tells more, and compares it with
other targets.

Watch in the log: `loss_reconstruction`, the share of the pixels' variance that is lost (lower is better); `codebook_usage`, the share of
the vocabulary in use (should approach 1); `perplexity`, to how many equally frequent tokens that amounts. And look at
`WORK_DIR/reconstructions/`: images of the first batch beside what their tokens keep of them, after every epoch.
"""

_base_ = ['../_base_/runtimes/pretraining.py']

# ---- often changed
data_root = 'data/images/'
ann_file = ''  # a text file of paths, one a line, instead of all images in the folder
vocab_size = 8192  # 512 to 8192; fewer for small or uniform collections
max_epochs = 30
in_channels = 3  # 1 for grey; others for TIFF files with so many channels
batch_size = 64  # per GPU; base_lr is for 64 in all, see auto_scale_lr
base_lr = 1e-3

# ---- possibly changed
image_size = 112  # of the tokenizer's view, or (height, width): 8 pixels for each patch of the encoder
crop_scale = (0.08, 1.0)
resize_backend = 'torch'  # 'pillow' for the very pixels of the authors' pipeline, at half the speed: they differ by rounding
num_workers = 8
model = dict(
    type='mmcae.DiscreteVAE',
    vocab_size=vocab_size,
    channels=(64, 128, 256),  # width at 1/2, 1/4 and 1/8 of the resolution
    num_blocks=2,
    code_dim=32,
    in_channels=in_channels,
)

# ---- rarely changed
data_preparation = 'Put your images there, in any tree of folders, or name their folder: data_root=FOLDER'
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=num_workers,
    persistent_workers=num_workers > 0,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='mmcae.ImageFolder',
        data_root=data_root,
        ann_file=ann_file,
        pipeline=[
            dict(type='mmcae.LoadImage', channels=in_channels),
            dict(type='mmcae.OneViewCrop', size=image_size, scale=crop_scale, backend=resize_backend),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackInputs'),
        ],
    ),
)
train_cfg = dict(type='mmcae.EpochBasedTrainLoop', max_epochs=max_epochs)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=base_lr), clip_grad=dict(max_norm=1.0))
param_scheduler = [dict(type='mmcae.WarmupCosineLR', warmup=1, end=max_epochs, by_epoch=True, convert_to_iter_based=True)]
custom_hooks = [dict(type='mmcae.DrawReconstructions', interval=1)]
auto_scale_lr = dict(enable=False, base_batch_size=64)
