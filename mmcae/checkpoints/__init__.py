"""Checkpoints of CAE in every layout people have: reading, renaming, and loading them strictly.

The pivot is mmcae's own layout: `backbone.` (the encoder, under BEiT's names), `regressor.`, `decoder.` and the position table
`pos_embed` that the latter two share. Every other layout is one table of renamings:

==================  ==================================================================  =====================
kind                what it is                                                          recognised by
==================  ==================================================================  =====================
mmcae               ours: pretraining, and every model with CAEViT as `backbone`        `backbone.blocks.`
official            the authors' pretraining                                            `encoder.blocks.`
mmpretrain          CAE or BEiTViT of mmpretrain and mmselfsup                          `backbone.layers.`
encoder             an encoder alone; ours, the authors', and timm's BEiT agree         `blocks.`
mmpretrain-encoder  mmpretrain's backbone alone                                         `layers.`
==================  ==================================================================  =====================

A plain ViT (MAE, DeiT, ... of mmpretrain, of timm or of MAE's authors) counts as `mmpretrain` or `encoder` and computes the same as CAEViT
with `layer_scale_init_value=0`.
"""

from .loading import load_encoder, load_strictly, pretrained_source
from .reading import (
    StateDict,
    damaged,
    first_sentence,
    load_state,
    name_of,
    read_checkpoint,
    read_safetensors,
    state_dict_of,
    write_state_dict,
)
from .renaming import (
    cae_of,
    convert_mmpretrain,
    convert_official,
    convert_timm,
    detect_kind,
    encoder_of,
    left_out,
    to_mmcae,
    to_mmpretrain,
    to_official,
    to_timm,
    tokenizer_of,
)

__all__ = [
    'StateDict',
    'cae_of',
    'convert_mmpretrain',
    'convert_official',
    'convert_timm',
    'damaged',
    'detect_kind',
    'encoder_of',
    'first_sentence',
    'left_out',
    'load_encoder',
    'load_state',
    'load_strictly',
    'name_of',
    'pretrained_source',
    'read_checkpoint',
    'read_safetensors',
    'state_dict_of',
    'to_mmcae',
    'to_mmpretrain',
    'to_official',
    'to_timm',
    'tokenizer_of',
    'write_state_dict',
]
