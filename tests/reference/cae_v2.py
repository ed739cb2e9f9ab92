"""CAE v2: encoder and regressor as in CAE, no decoder blocks, no alignment; every token is compared with CLIP's by its direction."""

import torch

from .cae import count, descend, encode, plain, project, regress
from .layers import attend, layer_norm, linear, part, patches_of

# What the recipes set: masked patches of 196, and blocks and width of the regressor.
RECIPES = {'tiny': (30, 1, 96), 'small': (49, 1, 384), 'base': (98, 4, 768)}


def normalize(vectors):
    return vectors / (vectors**2).sum(-1, keepdim=True).sqrt()


def order_of(mask):
    """Positions (B, 1 + N) of the model's outputs in raster order: 0 is the cls token, then the visible patches, then the masked ones."""
    rows = []
    for image in mask.tolist():
        visible = [1 + place for place, hidden in enumerate(image) if not hidden]
        masked = [1 + place for place, hidden in enumerate(image) if hidden]
        rows.append([0, *visible, *masked])
    return torch.tensor(rows)


def reorder(tokens, order):
    return torch.stack([torch.stack([image[place] for place in places]) for image, places in zip(tokens, order, strict=True)])


def forward(config, state, images, mask):
    """Everything the model computes for masked images (mask (B, N), True = masked); tokens come in the order of `order_of`."""
    encoded = encode(state, images, ~mask, config['num_heads'])
    projected = project(state, encoded)
    # The regressor's last norm is in the checkpoint, and never applied; no position is added before the head.
    regressed = regress(state, projected[:, 1:], mask, config['decoder_num_heads'])
    tokens = layer_norm(torch.cat([projected, regressed], dim=1), part(state, 'decoder.norm.'))
    head = linear(tokens, state['decoder.head.weight'], state['decoder.head.bias'])
    latent_predict = tokens[:, projected.shape[1] :]
    return dict(
        encoded=encoded, projected=projected, regressed=regressed, latent_predict=latent_predict, head=head, prediction=normalize(head)
    )


def labels_of(features, mask):
    """CLIP's tokens (B, 1 + N, K), the cls token first, in the order of the predictions and of length 1."""
    return normalize(reorder(features, order_of(mask)))


def losses(config, prediction, labels, mask):
    """The mean of 1 - cosine over all tokens; the same over each of the three kinds is for display."""
    cosine = (prediction * labels).sum(-1)
    masked = int(mask[0].sum())
    distance = 1 - cosine
    return dict(
        loss=config['latent_alignment_loss_weight'] * distance.mean(),
        loss_cls=distance[:, :1].mean(),
        loss_visible=distance[:, 1:-masked].mean(),
        loss_masked=distance[:, -masked:].mean(),
    )


def solve(config, state, image, mask, target_features, rate=0.5, steps=4):
    """All that a golden file of CAE v2 holds, computed in double precision."""
    state = {name: tensor.double() for name, tensor in state.items()}
    image, labels = image.double(), labels_of(target_features.double(), mask)
    out = forward(config, state, image, mask)

    def evaluate(weights):
        return losses(config, forward(config, weights, image, mask)['prediction'], labels, mask)

    descent = list(descend(state, rate, steps, evaluate))
    order = order_of(mask)
    raster = torch.stack([image[places.argsort()] for image, places in zip(out['prediction'], order, strict=True)])
    found = dict(
        order=order,
        labels=labels,
        encoder_visible=out['encoded'],
        regressed=out['regressed'],
        latent_predict=out['latent_predict'],
        head=out['head'],
        prediction=out['prediction'],
        prediction_raster=raster,
        cosine=(out['prediction'] * labels).sum(-1),
        **plain(losses(config, out['prediction'], labels, mask)),
        grads={name: gradient.float() for name, gradient in descent[0][1].items() if gradient is not None},
        no_grad=[name for name, gradient in descent[0][1].items() if gradient is None],
        sgd_trajectory=dict(lr=rate, steps=[numbers for numbers, _ in descent]),
    )
    if 'encoder_to_regresser.weight' in state:
        found['encoder_visible_proj'] = out['projected']
    return found


def clip_tokens(config, state, images):
    """CLIP's image tower: all tokens of the last block after its norm and the projection, (B, 1 + N, K), the cls token first."""
    state = part(state, 'visual.')
    patches = patches_of(images, state['conv1.weight'], None)
    cls = state['class_embedding'].expand(len(images), 1, -1)
    x = torch.cat([cls, patches], dim=1)
    x = layer_norm(x + state['positional_embedding'], part(state, 'ln_pre.'), eps=1e-5)
    for number in range(count(state, 'transformer.resblocks.')):
        layer = part(state, f'transformer.resblocks.{number}.')
        normed = layer_norm(x, part(layer, 'ln_1.'), eps=1e-5)
        q, k, v = linear(normed, layer['attn.in_proj_weight'], layer['attn.in_proj_bias']).chunk(3, dim=-1)
        x = x + linear(attend(q, k, v, config['heads']), layer['attn.out_proj.weight'], layer['attn.out_proj.bias'])
        normed = layer_norm(x, part(layer, 'ln_2.'), eps=1e-5)
        hidden = linear(normed, layer['mlp.c_fc.weight'], layer['mlp.c_fc.bias'])
        hidden = hidden / (1 + (-1.702 * hidden).exp())  # QuickGELU, not GELU
        x = x + linear(hidden, layer['mlp.c_proj.weight'], layer['mlp.c_proj.bias'])
    return layer_norm(x, part(state, 'ln_post.'), eps=1e-5) @ state['proj']


def clip_positions(table, source, grid):
    """CLIP's position table (1 + source ** 2, C) for another square grid: bilinear; that of the cls token stays."""
    maps = table[1:].T.reshape(1, -1, source, source)
    maps = torch.nn.functional.interpolate(maps, size=(grid, grid), mode='bilinear', align_corners=False)
    return torch.cat([table[:1], maps[0].flatten(1).T])


def solve_clip(config, state, image, image_resized):
    """All that a golden file of CLIP's image tower holds, in single precision."""
    state = {name: tensor.float() for name, tensor in state.items()}
    table = clip_positions(state['visual.positional_embedding'], config['grid_src'], config['grid'])
    resized = {**state, 'visual.positional_embedding': table}
    return dict(
        tokens=clip_tokens(config, state, image.float()),
        tokens_resized=clip_tokens(config, resized, image_resized.float()),
        pos_embed_resized=table,
    )
