"""The tokenizer of the embedded digits: a codebook of 64 grey patches, learned in seconds.

    python tools/train.py configs/digits/tokenizer_digits.py
"""

_base_ = ['../_base_/datasets/digits_pretrain.py', '../_base_/runtimes/pretraining.py']

# ---- modified often
vocab_size = 64
max_iters = 150

# ---- modified sometimes
model = dict(type='mmcae.PatchCodebook', vocab_size=vocab_size, patch_size=8)
data_preprocessor = None  # the tokenizer's own: pixels in [0, 1]
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=0.02))
param_scheduler = [dict(type='mmcae.WarmupCosineLR', warmup=0, end=max_iters, by_epoch=False)]

# ---- the rest
train_pipeline = [
    dict(type='mmcae.LoadImage'),
    dict(type='RandomResizedCrop', scale=32, crop_ratio_range=(0.5, 1.0), backend='pillow', interpolation='lanczos'),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=max_iters), logger=dict(interval=25))
log_processor = dict(by_epoch=False)
