# CAE-L as in cae_vit-large-p16_32xb64-amp-coslr-1600e_in1k.py; parameters, gradients, optimizer state shared out over the GPUs (FSDP2).
# For models that do not fit a GPU otherwise; slower than the plain config where that one fits. docs/distributed.md tells when and how.

_base_ = ['cae_vit-large-p16_32xb64-amp-coslr-1600e_in1k.py']

# ---- possibly changed: param_dtype=None gathers in float32 and computes as the plain config does; async_save writes while training goes on
runner_type = 'FlexibleRunner'
strategy = dict(type='mmcae.FSDP2Strategy', param_dtype='bfloat16', async_save=True)

# ---- rarely changed: parameters in bfloat16 want no other type of autocast
optim_wrapper = dict(dtype='bfloat16')
