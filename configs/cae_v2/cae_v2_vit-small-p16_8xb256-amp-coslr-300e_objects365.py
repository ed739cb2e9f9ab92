# CAE v2-S on the images of Objects365, from the encoder that ImageNet gave: what LW-DETR's backbones are. LW-DETR's other sizes: this with
# the tiny or the base recipe as _base_. docs/checkpoints.md says how the encoder gets into LW-DETR.
#     mmcae train cae_v2/cae_v2_vit-small-p16_8xb256-amp-coslr-300e_objects365

_base_ = ['cae_v2_vit-small-p16_8xb256-amp-coslr-300e_in1k.py']

# ---- often changed
data_root = 'data/objects365/'
ann_file = 'train.txt'  # one path a line, relative to data_root; '' for all images below it
model = dict(init_cfg=dict(type='Pretrained', checkpoint='work_dirs/cae_v2_vit-small-p16_8xb256-amp-coslr-300e_in1k/epoch_300.pth'))

# ---- rarely changed
data_preparation = 'Put the images of Objects365 there, and a list of those to train on as train.txt, or set ann_file="".'
train_dataloader = dict(dataset=dict(data_root=data_root, data_prefix='', ann_file=ann_file))
