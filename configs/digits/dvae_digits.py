"""A discrete VAE on the embedded digits: two minutes of one core. To compare with tokenizer_digits.py, and to try things on.

mmcae train digits/dvae_digits
mmcae train digits/cae_dvae_vit-digits
"""

_base_ = ['tokenizer_digits.py']

# ---- often changed
vocab_size = 128
max_iters = 2000
batch_size = 64
base_lr = 4e-3

# ---- possibly changed
model = dict(
    _delete_=True,
    type='mmcae.DiscreteVAE',
    vocab_size=vocab_size,
    channels=(32, 64, 64),  # three halvings: a token for every 8x8 pixels, as many as the encoder has patches
    num_blocks=1,
    code_dim=16,
)

# ---- rarely changed
train_dataloader = dict(batch_size=batch_size)
train_cfg = dict(max_iters=max_iters)
optim_wrapper = dict(optimizer=dict(lr=base_lr))
param_scheduler = [dict(type='mmcae.WarmupCosineLR', warmup=max_iters // 20, end=max_iters, by_epoch=False)]
default_hooks = dict(checkpoint=dict(interval=max_iters))
custom_hooks = [dict(type='mmcae.DrawReconstructions', interval=max_iters // 2, by_epoch=False)]
