"""LW-DETR's vision transformer (arXiv 2406.03459), slowly and from its description: CAE's names, windows of a quarter of each side.

Facts from its released code: it reads `checkpoint['model']` without the prefix `encoder.`, keeps a table of 14x14 positions and one for
cls, has no cls token, and attends within 4x4 windows in some blocks.
"""

import torch
import torch.nn.functional as F

NORM_EPS = 1e-6


def read(checkpoint):
    """The state dict as LW-DETR's backbone takes it."""
    return {key.replace('encoder.', ''): value for key, value in checkpoint['model'].items()}


def maps(state, images, depth, heads, windowed=()):
    """The map (B, C, h, w) after the last block, of images whose grid is a multiple of 4."""
    x = F.conv2d(images, state['patch_embed.proj.weight'], state['patch_embed.proj.bias'], stride=16)
    batch, width, rows, columns = x.shape
    table = state['pos_embed'][:, 1:].reshape(1, 14, 14, width).permute(0, 3, 1, 2)
    if (rows, columns) != (14, 14):
        table = F.interpolate(table, size=(rows, columns), mode='bicubic', align_corners=False)
    x = (x + table).flatten(2).transpose(1, 2)
    for number in range(depth):
        block = {key.removeprefix(f'blocks.{number}.'): value for key, value in state.items() if key.startswith(f'blocks.{number}.')}
        y = F.layer_norm(x, (width,), block['norm1.weight'], block['norm1.bias'], NORM_EPS)
        bias = torch.cat((block['attn.q_bias'], torch.zeros_like(block['attn.q_bias']), block['attn.v_bias']))
        q, k, v = F.linear(y, block['attn.qkv.weight'], bias).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if number in windowed:
            row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing='ij')
            window = (row // (rows // 4) * 4 + column // (columns // 4)).flatten()
            scores = scores.masked_fill(window[:, None] != window[None], float('-inf'))
        y = F.linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), block['attn.proj.weight'], block['attn.proj.bias'])
        x = x + block['gamma_1'] * y
        y = F.layer_norm(x, (width,), block['norm2.weight'], block['norm2.bias'], NORM_EPS)
        y = F.linear(F.gelu(F.linear(y, block['mlp.fc1.weight'], block['mlp.fc1.bias'])), block['mlp.fc2.weight'], block['mlp.fc2.bias'])
        x = x + block['gamma_2'] * y
    return x.transpose(1, 2).unflatten(2, (rows, columns))
