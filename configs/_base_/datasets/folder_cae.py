# A folder of unlabelled images, or a list of them, in the two views that CAE trains on. The size of the second one follows from the target
# and is set by the recipe.

# ---- often changed
data_root = 'data/images/'
ann_file = ''  # a text file of paths, one a line, instead of all images in the folder
batch_size = 256  # per GPU
num_workers = 8  # processes that read images
image_size = 224
patch_size = 16
crop_scale = (0.08, 1.0)  # share of the image's area that a view shows
reduced_decoding = False  # JPEGs far larger than a view are decoded no finer than it needs: faster, pixels differ a little

# ---- possibly changed
# 'device': views are made on the GPU, for more images per loader core. 'pillow': the very pixels of the authors' pipeline, at half the
# speed. They differ by rounding.
resize_backend = 'torch'
num_masked = (image_size // patch_size) ** 2 // 2
crop = dict(type='mmcae.TwoViewCrop', size=image_size, second_size=image_size, scale=crop_scale, backend=resize_backend)
loading = dict(type='mmcae.LoadImage', crop=crop if reduced_decoding else None)
mask = dict(
    type='mmcae.BlockMaskGenerator',
    grid=image_size // patch_size,
    num_masked=num_masked,
    min_block=min(16, num_masked // 4 + 1),  # less than the paper's 16 on small grids
)
data_preprocessor = dict(
    type='mmcae.ViewPreprocessor',
    # the model's view: ImageNet's mean and standard deviation, which downstream tools expect
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    # the tokenizer's view: [0, 1]
    second_mean=[0.0],
    second_std=[255.0],
    to_rgb=False,  # mmcae.LoadImage gives RGB
)

# ---- rarely changed
data_preparation = 'Put your images there, in any tree of folders, or name their folder: data_root=FOLDER'
train_pipeline = [loading, dict(type='RandomFlip', prob=0.5), crop, mask, dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=num_workers,
    persistent_workers=num_workers > 0,
    pin_memory=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    drop_last=True,
    collate_fn=dict(type='mmcae.collate_views'),
    dataset=dict(type='mmcae.ImageFolder', data_root=data_root, ann_file=ann_file, pipeline=train_pipeline),
)
