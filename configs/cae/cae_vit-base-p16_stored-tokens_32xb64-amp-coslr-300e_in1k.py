# cae_vit-base-p16_32xb64-amp-coslr-300e_in1k.py without its tokenizer, a third of the arithmetic: every epoch shows one of eight views of
# each image that were drawn beforehand, and reads their tokens. Fewer views than in the paper, so not its recipe: docs/tokenizers.md.
#
#     mmcae tokens cae/cae_vit-base-p16_32xb64-amp-coslr-300e_in1k data/imagenet_tokens

_base_ = ['cae_vit-base-p16_32xb64-amp-coslr-300e_in1k.py']

# ---- often changed
tokens = 'data/imagenet_tokens'  # made with the same images, in the same order

# ---- rarely changed
model = dict(target_generator=dict(_delete_=True, type='mmcae.StoredTokens', folder=tokens))
data_preprocessor = dict(second_mean=[0.0], second_std=[1.0])  # of the second view, which is the tokens
train_pipeline = [
    dict(type='mmcae.LoadImage'),
    dict(type='mmcae.StoredViews', folder=tokens, size=224, backend=_base_.resize_backend),
    *_base_.train_pipeline[-2:],  # the mask, and packing
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
