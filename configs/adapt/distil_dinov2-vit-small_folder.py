"""Distil a large released encoder into a ViT-S on a folder of your own images: all tokens of the student are compared with the teacher's.

    mmcae train adapt/distil_dinov2-vit-small_folder data_root=FOLDER \
        teacher_checkpoint=/path/to/dinov2_vitl14_reg4_pretrain.pth student_checkpoint=/path/to/dinov2_vits14_reg4_pretrain.pth

One GPU. The student starts from a released small encoder; model.backbone.init_cfg=None starts it from nothing, which takes far more images.
Teacher and student need the same grid of patches alone: the teacher's view is resized. docs/adapt.md says which recipe for whom.
"""

_base_ = [
    '../_base_/models/cae_v2_vit-base.py',
    '../_base_/datasets/folder_cae.py',
    '../_base_/schedules/adapt.py',
    '../_base_/runtimes/pretraining.py',
]

# ---- often changed; the images in ../_base_/datasets/folder_cae.py, length and learning rate in ../_base_/schedules/adapt.py
teacher_checkpoint = 'data/checkpoints/dinov2_vitl14_reg4_pretrain.pth'
teacher = dict(type='mmcae.TimmEncoder', model_name='vit_large_patch14_reg4_dinov2', img_size=224)
student_checkpoint = 'data/checkpoints/dinov2_vits14_reg4_pretrain.pth'
student = dict(type='mmcae.TimmEncoder', model_name='vit_small_patch14_reg4_dinov2', img_size=224)
embed_dims = 384  # of the student
grid = 16  # patches along a side: 224 / 14
max_epochs = 100
base_lr = 5e-4  # for 256 images a step
frozen_stages = -1  # blocks of the student that stay as they are, from the first
lora = None  # dict(rank=32, alpha=64): train small updates alone

# ---- possibly changed
num_masked = grid**2 // 8  # few: the student is to see the image as its users will show it
supervise = ['cls', 'visible', 'masked']
regressor_layers = 1
default_hooks = dict(checkpoint=dict(interval=5, max_keep_ckpts=2))  # and the last epoch
warmup = max_epochs // 20

# ---- rarely changed: what follows from the above
optim_wrapper = dict(optimizer=dict(lr=base_lr))
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='mmcae.WarmupCosineLR', warmup=warmup, end=max_epochs, eta_min=1e-6, by_epoch=True, convert_to_iter_based=True)
]
model = dict(
    backbone=dict(
        _delete_=True,
        **student,
        drop_path_rate=0.1,
        frozen_stages=frozen_stages,
        lora=lora,
        init_cfg=dict(type='Pretrained', checkpoint=student_checkpoint),
    ),
    regressor=dict(in_dims=embed_dims, embed_dims=embed_dims, num_layers=regressor_layers),
    target_generator=dict(type='mmcae.Teacher', model=teacher, checkpoint=teacher_checkpoint),
    supervise=supervise,
)
# One view, which the teacher reads too.
changes = {
    'mmcae.TwoViewCrop': dict(second_size=None),
    'mmcae.BlockMaskGenerator': dict(grid=grid, num_masked=num_masked, min_block=min(16, num_masked // 4 + 1)),
}
train_pipeline = [{**step, **changes.get(step.type, {})} for step in _base_.train_pipeline]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
