"""The encoder of segmentation and detection: maps of several blocks, without the final norm, and their four resampled versions."""

import torch
import torch.nn.functional as F

from .cae import count
from .layers import block, gelu, part, patches_of


def resize_table(table, source, grid):
    """A checkpoint's position table (1, 1 + h w, C) for another patch grid: bicubic between the two sizes; the cls token's stays."""
    maps = table[:, 1:].reshape(1, *source, -1).permute(0, 3, 1, 2)
    maps = F.interpolate(maps, size=tuple(grid), mode='bicubic', align_corners=False)
    return torch.cat([table[:, :1], maps.permute(0, 2, 3, 1).reshape(1, grid[0] * grid[1], -1)], dim=1)


def positions_for(table, source, grid):
    """What an image of another size gets while training: the scale factor, a little too large, places the samples."""
    if tuple(source) == tuple(grid):
        return table
    maps = table[:, 1:].reshape(1, *source, -1).permute(0, 3, 1, 2)
    scale = ((grid[0] + 0.1) / source[0], (grid[1] + 0.1) / source[1])
    maps = F.interpolate(maps, scale_factor=scale, mode='bicubic', align_corners=False)
    return torch.cat([table[:, :1], maps.permute(0, 2, 3, 1).reshape(1, grid[0] * grid[1], -1)], dim=1)


def offset_index(rows, columns):
    """Which row of a bias table concerns a pair of tokens: (1 + N, 1 + N), the query first; the cls token comes before the patches."""
    cells = [None, *((row, column) for row in range(rows) for column in range(columns))]
    of_cls = (2 * rows - 1) * (2 * columns - 1)  # a row for each offset between two patches, then three for pairs with the cls token

    def row_for(query, key):
        if query is None:
            return of_cls if key is not None else of_cls + 2
        if key is None:
            return of_cls + 1
        return (query[0] - key[0] + rows - 1) * (2 * columns - 1) + query[1] - key[1] + columns - 1

    return torch.tensor([[row_for(query, key) for key in cells] for query in cells])


def grid_of(config):
    """The patch grid that the position table is made for."""
    size = config['img_size']
    return [side // config['patch_size'] for side in ([size, size] if isinstance(size, int) else size)]


def maps_of_blocks(config, state, images):
    """The patch tokens after the blocks `out_indices`, as maps (B, C, h, w)."""
    grid = [side // config['patch_size'] for side in images.shape[2:]]
    positions = positions_for(state['pos_embed'], grid_of(config), grid).to(images.dtype)
    patches = patches_of(images, state['patch_embed.proj.weight'], state['patch_embed.proj.bias'])
    x = torch.cat([state['cls_token'].expand(len(images), -1, -1), patches], dim=1) + positions
    maps = []
    for number in range(count(state, 'blocks.')):
        layer = part(state, f'blocks.{number}.')
        table = layer.get('attn.relative_position_bias_table')
        bias = None if table is None else table[offset_index(*grid)].permute(2, 0, 1)
        x = block(x, layer, config['num_heads'], bias)
        if number in config['out_indices']:
            maps.append(x[:, 1:].transpose(1, 2).reshape(len(images), -1, *grid))
    return maps


def double(maps, state):
    """A transposed convolution of kernel and stride 2: each pixel becomes four."""
    batch, _, height, width = maps.shape
    out = maps.new_zeros(batch, state['weight'].shape[1], 2 * height, 2 * width)
    for down in range(2):
        for right in range(2):
            pixels = torch.einsum('bchw,cd->bdhw', maps, state['weight'][:, :, down, right])
            out[:, :, down::2, right::2] = pixels + state['bias'][:, None, None]
    return out


def batch_norm(maps, state, eps=1e-5):
    """As at evaluation."""
    mean, deviation = state['running_mean'], (state['running_var'] + eps).sqrt()
    scale = state['weight'] / deviation
    return (maps - mean[:, None, None]) * scale[:, None, None] + state['bias'][:, None, None]


def pyramid(state, maps):
    """Four maps of stride 16 become maps of strides 4, 8, 16 and 32."""
    first = gelu(batch_norm(double(maps[0], part(state, 'fpn1.0.')), part(state, 'fpn1.1.')))
    last = maps[3]
    corners = [last[:, :, down::2, right::2] for down in range(2) for right in range(2)]
    return [double(first, part(state, 'fpn1.3.')), double(maps[1], part(state, 'fpn2.0.')), maps[2], torch.stack(corners).amax(0)]


def solve_segmentation(config, state, image, source, source_grid, grid):
    """All that the golden file of segmentation holds: maps, and a checkpoint's table `source` resized on loading; in single precision."""
    state = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    maps = maps_of_blocks(config, state, image.double())
    return dict(
        raw_features=[x.float() for x in maps],
        outputs=[x.float() for x in pyramid(state, maps)],
        pos_embed_resize=dict(src_grid=source_grid, src=source, dst_grid=grid, dst=resize_table(source, source_grid, grid)),
    )


def solve_detection(config, state, images):
    """All that the golden file of detection holds: for images of several sizes their position tables and maps, in single precision."""
    table = state['pos_embed']
    state = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    grids = [[side // config['patch_size'] for side in image.shape[2:]] for image in images]
    return dict(
        pos_embed_used=[positions_for(table, grid_of(config), grid) for grid in grids],
        outputs=[[x.float() for x in pyramid(state, maps_of_blocks(config, state, image.double()))] for image in images],
    )
