"""Random weights and inputs from a seed, and what the reference makes of them, in the layout of the golden files."""

import functools

import torch

from . import cae, cae_v2, dalle, dense
from .layers import position_table

# The golden files' sizes; a narrower decoder, which takes a projection; twelve heads everywhere, that do not divide the decoder's width.
CAE = {
    'cae': dict(seed=1),
    'cae narrow decoder': dict(seed=2, decoder_embed_dim=32),
    'cae twelve heads': dict(
        seed=3, img_size=48, num_heads=12, mlp_ratio=2, decoder_embed_dim=40, decoder_num_heads=12, num_masked=5, depth=2, vocab_size=30
    ),
}
CAE_V2 = {
    'cae v2': dict(seed=4, num_masked=6, num_out_dim=24),
    'cae v2 narrow decoder': dict(seed=5, num_masked=4, num_out_dim=20, decoder_embed_dim=32, regressor_depth=1),
    'cae v2 twelve heads': dict(
        seed=6, img_size=48, num_heads=12, decoder_embed_dim=24, decoder_num_heads=12, num_masked=3, num_out_dim=20
    ),
}
SIZES = dict(
    img_size=64,
    patch_size=16,
    embed_dim=48,
    depth=3,
    num_heads=4,
    mlp_ratio=4,
    regressor_depth=2,
    decoder_embed_dim=48,
    decoder_num_heads=4,
    num_masked=8,
    batch_size=2,
    layer_scale_init_value=0.1,
    norm_eps=1e-6,
)


@functools.cache
def example(name):
    """A dict like a golden file: `config`, `state_dict`, inputs, and everything that the reference computes from them."""
    if name in CAE:
        return cae_example(**CAE[name])
    if name in CAE_V2:
        return cae_v2_example(**CAE_V2[name])
    return {'segmentation': segmentation, 'detection': detection, 'dalle': dalle_example, 'clip': clip}[name]()


class Weights:
    """Random tensors under their names; all are numbers that half precision holds exactly, so that every precision starts from the same."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)
        self.state = {}

    def normal(self, *shape, scale=1.0, mean=0.0):
        return (mean + scale * torch.randn(shape, generator=self.generator)).half()

    def add(self, name, *shape, scale=0.2, mean=0.0):
        self.state[name] = self.normal(*shape, scale=scale, mean=mean)

    def linear(self, name, inputs, outputs, bias=True):
        self.add(f'{name}.weight', outputs, inputs, scale=inputs**-0.5)
        if bias:
            self.add(f'{name}.bias', outputs)

    def norm(self, name, dim):
        self.add(f'{name}.weight', dim, mean=1.0)
        self.add(f'{name}.bias', dim)

    def mlp(self, name, dim, hidden):
        self.linear(f'{name}.fc1', dim, hidden)
        self.linear(f'{name}.fc2', hidden, dim)

    def block(self, name, dim, heads, hidden, bias_grid=None):
        inner = dim // heads * heads
        for gamma in ('gamma_1', 'gamma_2'):
            self.add(f'{name}.{gamma}', dim, mean=0.5)
        self.norm(f'{name}.norm1', dim)
        for bias in ('q_bias', 'v_bias'):
            self.add(f'{name}.attn.{bias}', inner)
        if bias_grid:
            index = dense.offset_index(*bias_grid)
            self.add(f'{name}.attn.relative_position_bias_table', int(index.max()) + 1, heads, scale=1.0)
            self.state[f'{name}.attn.relative_position_index'] = index
        self.linear(f'{name}.attn.qkv', dim, 3 * inner, bias=False)
        self.linear(f'{name}.attn.proj', inner, dim)
        self.norm(f'{name}.norm2', dim)
        self.mlp(f'{name}.mlp', dim, hidden)

    def embeddings(self, prefix, dim, patch_size, grid):
        self.add(f'{prefix}cls_token', 1, 1, dim)
        self.state[f'{prefix}pos_embed'] = position_table(*grid, dim)
        self.add(f'{prefix}patch_embed.proj.weight', dim, 3, patch_size, patch_size, scale=(3 * patch_size**2) ** -0.5)
        self.add(f'{prefix}patch_embed.proj.bias', dim)

    def encoder(self, config):
        grid = [config['img_size'] // config['patch_size']] * 2
        self.embeddings('encoder.', config['embed_dim'], config['patch_size'], grid)
        for number in range(config['depth']):
            self.block(f'encoder.blocks.{number}', config['embed_dim'], config['num_heads'], config['mlp_ratio'] * config['embed_dim'])
        self.norm('encoder.norm', config['embed_dim'])

    def regressor(self, config):
        dim, heads = config['decoder_embed_dim'], config['decoder_num_heads']
        inner = dim // heads * heads
        if dim != config['embed_dim']:
            self.linear('encoder_to_regresser', config['embed_dim'], dim)
            self.norm('encoder_to_regresser_norm', dim)
        for number in range(config['regressor_depth']):
            name = f'regresser.regressor_blocks.{number}'
            for gamma in ('gamma_1_cross', 'gamma_2_cross'):
                self.add(f'{name}.{gamma}', dim, mean=0.5)
            for norm in ('norm1_q', 'norm1_k', 'norm1_v', 'norm2_cross'):
                self.norm(f'{name}.{norm}', dim)
            for bias in ('q_bias', 'v_bias'):
                self.add(f'{name}.cross_attn.{bias}', inner)
            for matrix in 'qkv':
                self.linear(f'{name}.cross_attn.{matrix}', dim, inner, bias=False)
            self.linear(f'{name}.cross_attn.proj', inner, dim)
            self.mlp(f'{name}.mlp_cross', dim, config['mlp_ratio'] * dim)
        self.norm('regresser.norm', dim)

    def pyramid(self, dim):
        for name in ('fpn1.0', 'fpn1.3', 'fpn2.0'):
            self.add(f'{name}.weight', dim, dim, 2, 2, scale=dim**-0.5)
            self.add(f'{name}.bias', dim)
            if name == 'fpn1.0':
                self.norm('fpn1.1', dim)
                self.add('fpn1.1.running_mean', dim)
                self.state['fpn1.1.running_var'] = self.normal(dim).abs() + 0.5
                self.state['fpn1.1.num_batches_tracked'] = torch.tensor(0)


def pretraining_state(config, outputs, weights):
    """The authors' full model: a copy of the encoder and decoder blocks where `decoder_depth` is in the config, as CAE v1 has them."""
    grid = [config['img_size'] // config['patch_size']] * 2
    dim = config['decoder_embed_dim']
    weights.state['rd_pos_embed'] = position_table(*grid, dim)
    weights.add('mask_token', 1, 1, dim)
    weights.encoder(config)
    if 'decoder_depth' in config:
        copies = {f'alignment_{name}': tensor for name, tensor in weights.state.items() if name.startswith('encoder.')}
        weights.state |= copies
    weights.regressor(config)
    for number in range(config.get('decoder_depth', 0)):
        weights.block(f'decoder.decoder_blocks.{number}', dim, config['decoder_num_heads'], config['mlp_ratio'] * dim)
    weights.norm('decoder.norm', dim)
    weights.linear('decoder.head', dim, outputs)
    return weights.state


def masked_images(config, weights):
    """Images (B, 3, S, S), and masks (B, N) that hide equally many patches of each."""
    patches = (config['img_size'] // config['patch_size']) ** 2
    image = weights.normal(config['batch_size'], 3, config['img_size'], config['img_size'])
    order = torch.rand(config['batch_size'], patches, generator=weights.generator).argsort(dim=1)
    return image, order < config['num_masked']


def cae_example(**changes):
    config = SIZES | dict(decoder_depth=2, vocab_size=64, align_loss_weight=2.0) | changes
    weights = Weights(config['seed'])
    state = pretraining_state(config, config['vocab_size'], weights)
    image, mask = masked_images(config, weights)
    token_ids = torch.randint(config['vocab_size'], mask.shape, generator=weights.generator)
    # A third of the tokens is predicted right, so that an accuracy of zero is none.
    logits = cae.forward(config, {name: tensor.double() for name, tensor in state.items()}, image.double(), mask)['logits']
    hit = torch.zeros(len(logits), dtype=torch.bool)
    hit[::3] = True
    token_ids[mask] = torch.where(hit, logits.argmax(1), token_ids[mask])
    given = dict(config=config, state_dict=state, image=image, mask=mask, token_ids=token_ids)
    return given | cae.solve(**{('state' if name == 'state_dict' else name): value for name, value in given.items()})


def cae_v2_example(**changes):
    config = SIZES | dict(latent_alignment_loss_weight=1.0) | changes
    config['num_patches'] = (config['img_size'] // config['patch_size']) ** 2
    weights = Weights(config['seed'])
    state = pretraining_state(config, config['num_out_dim'], weights)
    image, mask = masked_images(config, weights)
    # Of different lengths, which must not matter.
    lengths = 0.5 + torch.rand(config['batch_size'], 1 + config['num_patches'], 1, generator=weights.generator)
    features = (weights.normal(config['batch_size'], 1 + config['num_patches'], config['num_out_dim']) * lengths).half()
    found = cae_v2.solve(config, state, image, mask, features)
    return dict(config=config, state_dict=state, image=image, mask=mask, target_features=features) | found


def dense_config(**changes):
    sizes = dict(embed_dim=48, depth=5, num_heads=4, mlp_ratio=4, out_indices=[0, 2, 3, 4], patch_size=16, init_values=0.1)
    return sizes | dict(use_abs_pos_emb=False, use_rel_pos_bias=False, qkv_bias=True) | changes


def dense_state(config, weights):
    grid = dense.grid_of(config)
    weights.embeddings('', config['embed_dim'], config['patch_size'], grid)
    for number in range(config['depth']):
        sizes = (config['embed_dim'], config['num_heads'], config['mlp_ratio'] * config['embed_dim'])
        weights.block(f'blocks.{number}', *sizes, bias_grid=grid if config['use_rel_pos_bias'] else None)
    weights.pyramid(config['embed_dim'])
    return weights.state


def segmentation():
    config = dense_config(img_size=64, use_rel_pos_bias=True, seed=7)
    weights = Weights(config['seed'])
    state = dense_state(config, weights)
    image = weights.normal(2, 3, config['img_size'], config['img_size']).float()
    source = position_table(14, 14, config['embed_dim'])
    found = dense.solve_segmentation(config, state, image, source, [14, 14], dense.grid_of(config))
    return dict(config=config, state_dict=state, input=image) | found


def detection():
    config = dense_config(img_size=[64, 96], use_sincos_pos_emb=True, seed=8)
    weights = Weights(config['seed'])
    state = dense_state(config, weights)
    grid = dense.grid_of(config)
    source = position_table(4, 4, config['embed_dim'])
    state['pos_embed'] = dense.resize_table(source, [4, 4], grid)
    inputs = [weights.normal(1, 3, *size) for size in ((64, 96), (96, 128), (128, 64))]
    found = dense.solve_detection(config, state, inputs)
    return dict(config=config, state_dict=state, ckpt_pos_embed=source, ckpt_grid=[4, 4], inputs=inputs) | found


def dalle_example():
    config = dict(group_count=4, n_hid=8, n_blk_per_group=2, input_channels=3, vocab_size=40, size=32, seed=9)
    weights = Weights(config['seed'])

    def convolution(name, inputs, outputs, kernel):
        weights.add(f'{name}.w', outputs, inputs, kernel, kernel, scale=1.4 * (inputs * kernel**2) ** -0.5)
        weights.add(f'{name}.b', outputs)

    width = config['n_hid']
    convolution('blocks.input', config['input_channels'], width, 7)
    for group in range(4):
        for number in range(config['n_blk_per_group']):
            name, out = f'blocks.group_{group + 1}.block_{number + 1}', config['n_hid'] * 2**group
            if width != out:
                convolution(f'{name}.id_path', width, out, 1)
            for layer, (inputs, outputs, kernel) in enumerate(
                ((width, out // 4, 3), (out // 4, out // 4, 3), (out // 4, out // 4, 3), (out // 4, out, 1)), 1
            ):
                convolution(f'{name}.res_path.conv_{layer}', inputs, outputs, kernel)
            width = out
    convolution('blocks.output.conv', width, config['vocab_size'], 1)
    image = torch.rand(2, 3, config['size'], config['size'], generator=weights.generator)
    return dict(config=config, state_dict=weights.state, image01=image) | dalle.solve(weights.state, image)


def clip():
    config = dict(seed=10, grid_src=3, grid=4, patch_size=16, width=64, layers=2, output_dim=24, batch_size=2, heads=2)
    weights = Weights(config['seed'])
    width = config['width']
    weights.add('visual.class_embedding', width)
    weights.add('visual.positional_embedding', 1 + config['grid_src'] ** 2, width)
    weights.add('visual.proj', width, config['output_dim'], scale=width**-0.5)
    weights.add('visual.conv1.weight', width, 3, config['patch_size'], config['patch_size'], scale=(3 * config['patch_size'] ** 2) ** -0.5)
    weights.norm('visual.ln_pre', width)
    for number in range(config['layers']):
        name = f'visual.transformer.resblocks.{number}'
        weights.add(f'{name}.attn.in_proj_weight', 3 * width, width, scale=width**-0.5)
        weights.add(f'{name}.attn.in_proj_bias', 3 * width)
        weights.linear(f'{name}.attn.out_proj', width, width)
        weights.norm(f'{name}.ln_1', width)
        weights.linear(f'{name}.mlp.c_fc', width, 4 * width)
        weights.linear(f'{name}.mlp.c_proj', 4 * width, width)
        weights.norm(f'{name}.ln_2', width)
    weights.norm('visual.ln_post', width)
    image, resized = (weights.normal(2, 3, *[grid * config['patch_size']] * 2) for grid in (config['grid_src'], config['grid']))
    found = cae_v2.solve_clip(config, weights.state, image, resized)
    return dict(config=config, state_dict=weights.state, image=image, image_resized=resized) | found
