"""Checkpoints of CAE in every layout people have: reading, describing, renaming, loading and writing them.

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
huggingface         ViT, DINOv2, DINOv3, CLIP, SigLIP, BEiT of Hugging Face             `embeddings.`
==================  ==================================================================  =====================

A plain ViT (MAE, DeiT, ... of mmpretrain, of timm or of MAE's authors) counts as `mmpretrain` or `encoder` and computes the same as CAEViT
with `layer_scale_init_value=0`, and as TimmEncoder, which :func:`mmcae.apis.load_encoder` builds of timm's, Meta's and Hugging Face's. What
tensors do not tell, an :class:`EncoderSpec` in the file does.

The way of a file: reading (bytes to plain data) -> layouts (where the model is) -> renaming (to our names) -> weights (with the description
of the encoder) -> loading (into a model).
"""

from .describing import metadata, metadata_of
from .exporting import timm_arguments, to_mmpretrain, to_official, to_timm
from .formats import export_encoder
from .layouts import KINDS, load_state, locate, name_of
from .loading import load_encoder_weights, load_strictly, pretrained_source
from .reading import StateDict, damaged, first_sentence, read_checkpoint, weights_checksum, write_state_dict
from .renaming import cae_of, convert_mmpretrain, convert_official, convert_timm, encoder_of, left_out, to_mmcae, tokenizer_of
from .spec import EncoderSpec, Origin, ViewSpec
from .weights import Weights, read_weights

__all__ = [
    'EncoderSpec',
    'KINDS',
    'Origin',
    'StateDict',
    'ViewSpec',
    'Weights',
    'cae_of',
    'convert_mmpretrain',
    'convert_official',
    'convert_timm',
    'damaged',
    'encoder_of',
    'export_encoder',
    'first_sentence',
    'left_out',
    'load_encoder_weights',
    'load_state',
    'load_strictly',
    'locate',
    'metadata',
    'metadata_of',
    'name_of',
    'pretrained_source',
    'read_checkpoint',
    'read_weights',
    'timm_arguments',
    'to_mmcae',
    'to_mmpretrain',
    'to_official',
    'to_timm',
    'tokenizer_of',
    'weights_checksum',
    'write_state_dict',
]
