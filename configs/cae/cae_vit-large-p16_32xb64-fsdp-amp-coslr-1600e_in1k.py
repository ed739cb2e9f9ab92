# CAE-L as in cae_vit-large-p16_32xb64-amp-coslr-1600e_in1k.py; parameters, gradients, optimizer state shared out over the GPUs (FSDP).
# For models that do not fit a GPU otherwise; slower than the plain config where that one fits. docs/distributed.md tells when and how.

_base_ = ['cae_vit-large-p16_32xb64-amp-coslr-1600e_in1k.py']

# ---- possibly changed: 'full' writes one checkpoint that every tool reads; 'local' one piece for each process, quicker for huge models
runner_type = 'FlexibleRunner'
strategy = dict(type='mmcae.FSDPStrategy', state_dict_cfg='full')

# ---- rarely changed: the norm to clip by is that of all pieces together
optim_wrapper = dict(use_fsdp=True)
