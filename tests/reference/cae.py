"""CAE's pretraining model: encoder, regressor, alignment, decoder, losses, and training by plain gradient descent."""

import torch

from .layers import block, chosen, cross_attention, layer_norm, linear, mlp, part, patches_of

# Width, blocks and heads of the encoder. Tiny and small have twelve heads as well.
ARCHITECTURES = {'tiny': (192, 12, 12), 'small': (384, 12, 12), 'base': (768, 12, 12), 'large': (1024, 24, 16)}


def encode(state, images, shown, heads):
    """The encoder sees the patches where `shown` (B, N) is True, and nothing else: (B, 1 + n, C), the cls token first."""
    return layer_norm(after_blocks(state, images, shown, heads), part(state, 'encoder.norm.'))


def after_blocks(state, images, shown, heads):
    """The same before the final norm."""
    state = part(state, 'encoder.')
    patches = patches_of(images, state['patch_embed.proj.weight'], state['patch_embed.proj.bias'])
    positions = state['pos_embed'].to(images.dtype)
    visible = chosen(patches + positions[:, 1:], shown)
    cls = (state['cls_token'] + positions[:, :1]).expand(len(images), -1, -1)
    x = torch.cat([cls, visible], dim=1)
    for number in range(count(state, 'blocks.')):
        x = block(x, part(state, f'blocks.{number}.'), heads)
    return x


def project(state, latents):
    """From the encoder's width to the regressor's, where they differ."""
    if 'encoder_to_regresser.weight' not in state:
        return latents
    latents = linear(latents, state['encoder_to_regresser.weight'], state['encoder_to_regresser.bias'])
    return layer_norm(latents, part(state, 'encoder_to_regresser_norm.'))


def regress(state, visible, mask, heads):
    """Latents of the masked patches (B, m, D) from those of the visible ones, before the regressor's last norm."""
    positions = state['rd_pos_embed'].to(visible.dtype)[:, 1:]
    of_visible, of_masked = chosen(positions, ~mask), chosen(positions, mask)
    q = state['mask_token'].expand_as(of_masked)
    for number in range(count(state, 'regresser.regressor_blocks.')):
        layer = part(state, f'regresser.regressor_blocks.{number}.')
        context = torch.cat([visible, q], dim=1)
        key = layer_norm(context + torch.cat([of_visible, of_masked], dim=1), part(layer, 'norm1_k.'))
        value = layer_norm(context, part(layer, 'norm1_v.'))
        query = layer_norm(q + of_masked, part(layer, 'norm1_q.'))
        x = q + layer['gamma_1_cross'] * cross_attention(query, key, value, part(layer, 'cross_attn.'), heads)
        x = layer_norm(x, part(layer, 'norm2_cross.'))  # the stream itself is normalised
        q = x + layer['gamma_2_cross'] * mlp(x, part(layer, 'mlp_cross.'))
    return q


def decode(state, latents, mask, heads):
    """Logits (B, m, V) of the masked patches; they attend to each other alone."""
    x = latents + chosen(state['rd_pos_embed'].to(latents.dtype)[:, 1:], mask)
    for number in range(count(state, 'decoder.decoder_blocks.')):
        x = block(x, part(state, f'decoder.decoder_blocks.{number}.'), heads)
    return linear(layer_norm(x, part(state, 'decoder.norm.')), state['decoder.head.weight'], state['decoder.head.bias'])


def forward(config, state, images, mask):
    """Everything the model computes for masked images (mask (B, N), True = masked)."""
    heads, decoder_heads = config['num_heads'], config['decoder_num_heads']
    encoded = encode(state, images, ~mask, heads)
    projected = project(state, encoded)
    latent_predict = layer_norm(regress(state, projected[:, 1:], mask, decoder_heads), part(state, 'regresser.norm.'))
    with torch.no_grad():  # by the encoder as it is at this moment
        latent_target = project(state, encode(state, images, mask, heads))[:, 1:]
    logits = decode(state, latent_predict, mask, decoder_heads).flatten(0, 1)
    return dict(encoded=encoded, projected=projected, latent_predict=latent_predict, latent_target=latent_target, logits=logits)


def losses(config, out, labels):
    """Cross entropy over the vocabulary, weighted distance of the latents, and the share of tokens that are predicted right."""
    of_label = torch.stack([row[label] for row, label in zip(out['logits'], labels, strict=True)])
    loss_main = (out['logits'].exp().sum(-1).log() - of_label).mean()
    loss_align = config['align_loss_weight'] * ((out['latent_predict'] - out['latent_target']) ** 2).mean()
    right = sum(int(row.argmax()) == int(label) for row, label in zip(out['logits'], labels, strict=True))
    return dict(loss=loss_main + loss_align, loss_main=loss_main, loss_align=loss_align, mlm_acc=right / len(labels))


def trainable(state):
    """The tensors that training changes: neither position tables nor the copy of the encoder."""
    return {name: tensor for name, tensor in state.items() if 'pos_embed' not in name and not name.startswith('alignment_encoder.')}


def descend(state, rate, steps, evaluate):
    """Plain gradient descent: yields the losses that `evaluate(state)` gives before each step, and the gradients of the first of them."""
    state = dict(state)
    for _ in range(steps):
        weights = {name: tensor.detach().clone().requires_grad_() for name, tensor in trainable(state).items()}
        with torch.enable_grad():  # whoever asks
            found = evaluate({**state, **weights})
            gradients = torch.autograd.grad(found['loss'], list(weights.values()), allow_unused=True)
        gradients = dict(zip(weights, gradients, strict=True))
        yield plain(found), gradients
        for name, gradient in gradients.items():
            state[name] = weights[name].detach() if gradient is None else (weights[name] - rate * gradient).detach()


def plain(numbers):
    """As Python's floats."""
    return {name: number.item() if torch.is_tensor(number) else number for name, number in numbers.items()}


def count(state, prefix):
    """How many blocks there are below a prefix."""
    return len({name[len(prefix) :].split('.')[0] for name in state if name.startswith(prefix)})


def solve(config, state, image, mask, token_ids, rate=0.05, steps=4):
    """All that a golden file of CAE holds, computed in double precision."""
    state = {name: tensor.double() for name, tensor in state.items()}
    image = image.double()
    labels = torch.cat([ids[hidden] for ids, hidden in zip(token_ids, mask, strict=True)])
    out = forward(config, state, image, mask)
    everything = torch.ones_like(mask)
    descent = list(descend(state, rate, steps, lambda weights: losses(config, forward(config, weights, image, mask), labels)))
    found = dict(
        labels=labels,
        encoder_visible=out['encoded'],
        encoder_full=encode(state, image, everything, config['num_heads']).float(),
        logits=out['logits'],
        latent_predict=out['latent_predict'],
        latent_target=out['latent_target'],
        **plain(losses(config, out, labels)),
        grads={name: gradient.float() for name, gradient in descent[0][1].items()},
        sgd_trajectory=dict(lr=rate, steps=[numbers for numbers, _ in descent]),
    )
    if 'encoder_to_regresser.weight' in state:
        found['encoder_visible_proj'] = out['projected']
    return found
