"""The authors' algorithm once more, in plain torch: slow, obvious, and independent of mmcae and timm. What the parity tests compare with.

Everything is a function of a state dict under the authors' names and of tensors; nothing is shared with mmcae. tests/test_reference.py
shows it equal to what the authors' own code computed, where the golden files are. Sizes come in a `config` like that of the golden files.

layers.py     attention, blocks, patches, position tables
cae.py        the pretraining model, its losses, the alignment target, training by plain gradient descent
cae_v2.py     CAE v2 and its target, CLIP's image tower
dense.py      the encoder and the four maps of segmentation and detection
probes.py     what classification reads from the encoder, the attentive head, layer-wise learning rates
dalle.py      DALL-E's tokenizer
masks.py      block masks
examples.py   seeded random weights and inputs for all of them, in the layout of the golden files
golden.py     the golden files themselves, where they are
"""
