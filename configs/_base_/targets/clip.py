# What CAE v2 is compared with: every token of OpenAI's CLIP, in its joint space, as in the paper. Its view is made of the encoder's own.
# For another teacher (a model of timm, an encoder of yours) see docs/tokenizers.md.

# ---- often changed: OpenAI's archive, which is read and never run, or Hugging Face's folder. Without it the run stops and says so.
target_generator = dict(
    type='mmcae.Teacher',
    model=dict(type='clip'),
    checkpoint='data/teachers/ViT-B-16.pt',
    projected=True,
    loss='cosine',
)
