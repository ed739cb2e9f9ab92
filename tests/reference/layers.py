"""What all the models are made of, written out: a linear layer is a matrix product, attention goes head by head."""

import math

import torch


def part(state, prefix):
    """The tensors below a prefix, under their names without it."""
    return {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}


def linear(x, weight, bias=None):
    product = x @ weight.T
    return product if bias is None else product + bias


def layer_norm(x, state, eps=1e-6):
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + eps).sqrt() * state['weight'] + state['bias']


def gelu(x):
    """The exact one."""
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def softmax(scores):
    weights = (scores - scores.max(-1, keepdim=True).values).exp()
    return weights / weights.sum(-1, keepdim=True)


def attend(q, k, v, heads, bias=None):
    """One head after the other: (B, n, C), (B, m, C), (B, m, C) -> (B, n, C). `bias` (heads, n, m) is added to the scores."""
    width = q.shape[-1] // heads
    outputs = []
    for head in range(heads):
        of_head = slice(head * width, (head + 1) * width)
        scores = (q[..., of_head] * width**-0.5) @ k[..., of_head].transpose(1, 2)
        if bias is not None:
            scores = scores + bias[head]
        outputs.append(softmax(scores) @ v[..., of_head])
    return torch.cat(outputs, dim=-1)


def self_attention(x, state, heads, bias=None):
    """BEiT's: queries and values have a bias, keys have none."""
    query, key, value = state['qkv.weight'].chunk(3)
    out = attend(linear(x, query, state['q_bias']), linear(x, key), linear(x, value, state['v_bias']), heads, bias)
    return linear(out, state['proj.weight'], state['proj.bias'])


def cross_attention(query, key, value, state, heads):
    q = linear(query, state['q.weight'], state['q_bias'])
    k = linear(key, state['k.weight'])
    v = linear(value, state['v.weight'], state['v_bias'])
    return linear(attend(q, k, v, heads), state['proj.weight'], state['proj.bias'])


def mlp(x, state):
    hidden = gelu(linear(x, state['fc1.weight'], state['fc1.bias']))
    return linear(hidden, state['fc2.weight'], state['fc2.bias'])


def block(x, state, heads, bias=None):
    """A pre-norm block with layer scale; that of the encoder and of the decoder."""
    x = x + state['gamma_1'] * self_attention(layer_norm(x, part(state, 'norm1.')), part(state, 'attn.'), heads, bias)
    return x + state['gamma_2'] * mlp(layer_norm(x, part(state, 'norm2.')), part(state, 'mlp.'))


def patches_of(images, weight, bias):
    """One patch after the other, row by row: images (B, 3, H, W), kernel (C, 3, p, p) -> (B, N, C)."""
    size = weight.shape[-1]
    tokens = []
    for top in range(0, images.shape[2], size):
        for left in range(0, images.shape[3], size):
            patch = images[:, :, top : top + size, left : left + size]
            tokens.append(linear(patch.flatten(1), weight.flatten(1), bias))
    return torch.stack(tokens, dim=1)


def position_table(rows, columns, dim):
    """The sin-cos table (1, 1 + rows * columns, dim): row and column of a patch, each as sines and cosines; zeros for the cls token.

    Computed in double precision and kept in single, as checkpoints carry it.
    """
    frequencies = [10000 ** (-k / (dim // 4)) for k in range(dim // 4)]
    table = [[0.0] * dim]
    for row in range(rows):
        for column in range(columns):
            entry = []
            for place in (row, column):
                entry += [math.sin(place * f) for f in frequencies]
                entry += [math.cos(place * f) for f in frequencies]
            table.append(entry)
    return torch.tensor([table], dtype=torch.float64).float()


def chosen(tokens, mask):
    """The tokens (B, N, C) where the mask (B, N) is True, image by image, in order: (B, n, C). A table (1, N, C) serves all images."""
    tokens = tokens.expand(len(mask), -1, -1)
    return torch.stack([torch.stack([t for t, wanted in zip(*pair, strict=True) if wanted]) for pair in zip(tokens, mask, strict=True)])
