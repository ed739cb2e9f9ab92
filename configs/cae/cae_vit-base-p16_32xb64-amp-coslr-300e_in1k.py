# CAE-B on ImageNet-1k, 300 epochs: the paper's base recipe. The authors' figures: linear 64.5, attentive 74.0, fine-tuning 83.6 top-1.
# 32 GPUs x 64 images = 2048. With fewer GPUs keep 2048 by a larger train_dataloader.batch_size or by optim_wrapper.accumulative_counts, or
# call mmcae train with --auto-scale-lr. On purpose different from the authors: bfloat16 in place of float16 with a scaled loss.

_base_ = [
    '../_base_/models/cae_vit-base.py',
    '../_base_/targets/dalle.py',  # or dvae.py, pixels.py, teacher.py: all that follows from the choice is wired below
    '../_base_/datasets/imagenet_cae.py',
    '../_base_/schedules/cae_300e.py',
    '../_base_/runtimes/pretraining.py',
]

# ---- often changed, here or by --cfg-options
# data_root                                where the images are
# train_dataloader.batch_size               images per GPU
# model.target_generator.checkpoint         DALL-E's encoder, prepared by mmcae convert
# ---- possibly changed: the precision and the length, in ../_base_/schedules/cae_300e.py; how often to save
# The last epoch is saved in any case. What --resume goes on from is saved besides, every recovery_interval iterations
# (../_base_/runtimes/pretraining.py).
default_hooks = dict(checkpoint=dict(interval=100, max_keep_ckpts=-1))

# ---- rarely changed: what the target asks for
model = dict(target_generator=_base_.target_generator, decoder=dict(num_outputs=_base_.num_outputs))
data_preprocessor = dict(second_mean=_base_.second_mean, second_std=_base_.second_std)
token_size = _base_.token_size  # None for targets without a second view
second_view = dict(second_size=token_size and 14 * token_size, second_interpolation=_base_.second_interpolation)  # for 14x14 patches
train_pipeline = [{**step, **second_view} if step.type == 'mmcae.TwoViewCrop' else step for step in _base_.train_pipeline]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

# ---- rarely changed: the model, in ../_base_/models/cae_vit-base.py; the seed (each process drops paths of its own)
randomness = dict(seed=0, diff_rank_seed=True)
