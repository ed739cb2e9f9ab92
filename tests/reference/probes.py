"""Classification: what each protocol reads from the encoder, the head of attentive probing, and the learning rate of each layer."""

import torch

from .layers import cross_attention, layer_norm, part


def linear_feature(tokens, norm):
    """Linear probing: the cls token after the final norm; `tokens` (B, 1 + N, C) come from the last block."""
    return layer_norm(tokens, norm)[:, 0]


def fine_tuning_feature(tokens, norm):
    """Fine-tuning: the norm of the mean over the patch tokens; the encoder's final norm starts as that norm."""
    return layer_norm(tokens[:, 1:].mean(1), norm)


def attentive_logits(tokens, state, heads, eps=1e-5):
    """Attentive probing while training: one query reads all tokens (after the final norm), plain batch norm, classifier."""
    query = layer_norm(state['query_token'].expand(len(tokens), -1, -1), part(state, 'norm1_q.'))
    key, value = layer_norm(tokens, part(state, 'norm1_k.')), layer_norm(tokens, part(state, 'norm1_v.'))
    read = cross_attention(query, key, value, part(state, 'cross_attn.'), heads)[:, 0]
    mean, variance = read.mean(0), ((read - read.mean(0)) ** 2).mean(0)
    return (read - mean) / torch.sqrt(variance + eps) @ state['head.weight'].T + state['head.bias']


def layer_scale_of_rate(name, blocks, decay):
    """The factor on the learning rate of an encoder's parameter: `decay` to the number of layers above it.

    Layer 0 are the embeddings, layer i + 1 is block i, and what follows the blocks is a layer of its own.
    """
    if name.startswith(('cls_token', 'pos_embed', 'patch_embed')):
        layer = 0
    elif name.startswith('blocks.'):
        layer = int(name.split('.')[1]) + 1
    else:
        layer = blocks + 1
    return decay ** (blocks + 1 - layer)


def is_decayed(name, tensor):
    """Whether weight decay concerns it: matrices, and tokens as well; neither biases nor norms nor layer scales."""
    return tensor.ndim > 1 and not name.endswith('.bias')
