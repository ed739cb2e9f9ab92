"""Models of mmcae with the weights of the reference, or of a golden file."""

import torch

from mmcae.apis import load_cae
from mmcae.checkpoints import load_strictly
from mmcae.models import CAEViT, DeconvPyramid


def model_of(reference, dtype=torch.float32):
    """A CAE or CAE v2, as its state dict tells."""
    config = reference['config']
    model = load_cae(reference['state_dict'], config['num_heads'], config['decoder_num_heads'])
    if 'align_loss_weight' in config:
        model.align_loss_weight = config['align_loss_weight']
    return model.to(dtype)


def backbone_and_pyramid(reference, img_size):
    """Both with the weights of the reference, in eval mode."""
    config, state = reference['config'], reference['state_dict']
    dim = config['embed_dim']
    arch = dict(
        embed_dims=dim,
        num_layers=config['depth'],
        num_heads=config['num_heads'],
        feedforward_channels=int(config['mlp_ratio'] * dim),
    )
    backbone = CAEViT(
        arch,
        img_size=img_size,
        patch_size=config['patch_size'],
        layer_scale_init_value=config['init_values'],
        use_rel_pos_bias=config['use_rel_pos_bias'],
        out_indices=tuple(config['out_indices']),
        out_type='featmap',
        final_norm=False,
    )
    encoder = {k: v for k, v in state.items() if not k.startswith('fpn') and not k.endswith('relative_position_index')}
    load_strictly(backbone, encoder, 'reference')
    pyramid = DeconvPyramid(dim)
    scales = {}
    for key, value in state.items():
        if key.startswith('fpn'):
            number, rest = key.removeprefix('fpn').split('.', 1)
            scales[f'scales.{int(number) - 1}.{rest}'] = value
    load_strictly(pyramid, scales, 'reference')
    return backbone.eval(), pyramid.eval()
