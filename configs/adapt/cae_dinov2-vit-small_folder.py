"""Go on from a released encoder on a folder of your own images by CAE: its features are the targets of the decoder, and the alignment pulls
the predicted latents to those of the encoder that learns.

    mmcae train adapt/cae_dinov2-vit-small_folder data_root=FOLDER \
        checkpoint=/path/to/dinov2_vits14_reg4_pretrain.pth

One GPU. Unlike in cae_v2_dinov2-vit-small_folder.py only the masked patches are compared with the released encoder, so the result may move
further from it. docs/adapt.md says which recipe for whom.
"""

_base_ = [
    '../_base_/models/cae_vit-base.py',
    '../_base_/datasets/folder_cae.py',
    '../_base_/schedules/adapt.py',
    '../_base_/runtimes/pretraining.py',
]

# ---- often changed; the images in ../_base_/datasets/folder_cae.py, length and learning rate in ../_base_/schedules/adapt.py
checkpoint = 'data/checkpoints/dinov2_vits14_reg4_pretrain.pth'  # of timm, Meta, Hugging Face (a file or folder) or mmcae
encoder = dict(type='mmcae.TimmEncoder', model_name='vit_small_patch14_reg4_dinov2', img_size=224)  # any plain ViT of timm
embed_dims = 384  # its width
grid = 16  # patches along a side: 224 / 14
frozen_stages = 4  # blocks that stay as they are, from the first; -1: none, nor the embeddings
lora = None  # dict(rank=8, alpha=16): train small updates alone, which are merged when the checkpoint is read

# ---- possibly changed
num_masked = grid**2 // 2
align_loss_weight = 2.0
default_hooks = dict(checkpoint=dict(interval=5, max_keep_ckpts=2))  # and the last epoch

# ---- rarely changed: what follows from the above
model = dict(
    backbone=dict(
        _delete_=True,
        **encoder,
        drop_path_rate=0.1,
        frozen_stages=frozen_stages,
        lora=lora,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    regressor=dict(in_dims=embed_dims, embed_dims=embed_dims),
    decoder=dict(embed_dims=embed_dims),
    target_generator=dict(type='mmcae.Teacher', model=encoder, checkpoint=checkpoint, loss='mse'),
    align_loss_weight=align_loss_weight,
)
# One view, which the target reads too.
changes = {
    'mmcae.TwoViewCrop': dict(second_size=None),
    'mmcae.BlockMaskGenerator': dict(grid=grid, num_masked=num_masked, min_block=min(16, num_masked // 4 + 1)),
}
train_pipeline = [{**step, **changes.get(step.type, {})} for step in _base_.train_pipeline]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
