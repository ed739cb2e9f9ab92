# data2vec with the encoder and images of cae_vit-digits.py. Needs no tokenizer: the encoder's own average is the teacher.
#     mmcae train digits/data2vec_vit-digits

_base_ = ['cae_vit-digits.py']

# ---- often changed: of each step the average takes this share, and the mean of so many last blocks is the target
ema_momentum = 0.004
top_blocks = 2

# ---- rarely changed
model = dict(_delete_=True, type='mmcae.Data2Vec', backbone=_base_.encoder, ema=dict(momentum=ema_momentum), top_blocks=top_blocks)
train_pipeline = [dict(step, second_size=None) if step.type == 'mmcae.TwoViewCrop' else step for step in _base_.train_pipeline]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))  # no target but the encoder's view
