# cae_vit-digits.py with a look at the encoder every 400 iterations: kNN accuracy, effective rank and spread of its features. What to copy
# for other pretraining configs; without labels give a `dataloader` alone.

_base_ = ['cae_vit-digits.py']

# ---- often changed: how often, and how many images; they decide about the time it takes, which the log tells
interval = 400
images = dict(
    type='CustomDataset',
    data_root='data/digits/classification/',
    pipeline=[dict(type='mmcae.LoadImage'), dict(type='PackInputs')],
)
bank = dict(type='mmcae.LabelSubset', labels=500, dataset=dict(data_prefix='train', **images))
queries = dict(type='mmcae.LabelSubset', labels=250, dataset=dict(data_prefix='val', **images))

# ---- possibly changed: the feature, here the mean over the patches
model = dict(backbone=dict(out_type='avg_featmap'))

# ---- rarely changed
custom_hooks = [
    dict(
        type='mmcae.OnlineProbe',
        interval=interval,
        by_epoch=False,
        k=(10, 20),
        dataloader=dict(batch_size=250, dataset=bank),
        query_dataloader=dict(batch_size=250, dataset=queries),
    )
]
