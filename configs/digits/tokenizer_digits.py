"""The tokenizer of the embedded digits: a codebook of 64 grey patches, learned in seconds. It makes the targets of cae_vit-digits.py.

mmcae train digits/tokenizer_digits
"""

_base_ = ['../_base_/datasets/digits_pretrain.py', '../_base_/runtimes/pretraining.py']

# ---- often changed
vocab_size = 64  # and num_outputs of the pretraining's decoder
max_iters = 150

# ---- possibly changed
model = dict(type='mmcae.PatchCodebook', vocab_size=vocab_size, patch_size=8)
data_preprocessor = None  # the tokenizer's own: pixels in [0, 1]
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=0.02))
param_scheduler = [dict(type='mmcae.WarmupCosineLR', warmup=0, end=max_iters, by_epoch=False)]

# ---- rarely changed
train_pipeline = [
    dict(type='mmcae.LoadImage', cache=True),
    dict(
        type='RandomResizedCrop', scale=32, crop_ratio_range={{_base_.crop_scale}}, backend='pillow', interpolation={{_base_.interpolation}}
    ),
    dict(type='PackInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
train_cfg = dict(type='mmcae.IterBasedTrainLoop', max_iters=max_iters)
default_hooks = dict(
    # One file under a name that does not depend on max_iters, because pretraining names it.
    checkpoint=dict(by_epoch=False, interval=max_iters, filename_tmpl='tokenizer.pth', max_keep_ckpts=-1),
    logger=dict(interval=25),
)
log_processor = dict(by_epoch=False)
custom_hooks = [dict(type='mmcae.DrawReconstructions', interval=max_iters, by_epoch=False)]
randomness = dict(seed=0)
