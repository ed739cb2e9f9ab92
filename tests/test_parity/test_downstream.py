"""Encoder and pyramid against maps computed by the authors' segmentation and detection backbones."""

import pytest
import torch

from mmcae.checkpoints import load_strictly
from mmcae.models import CAEViT, DeconvPyramid
from mmcae.models.layers import resize_position_table

# The golden maps are float32 results of another order of summation.
FLOAT32 = dict(rtol=1e-5, atol=1e-5)


def backbone_and_pyramid(reference, img_size):
    """Both with the golden weights, in eval mode."""
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
    load_strictly(backbone, encoder, 'golden')
    pyramid = DeconvPyramid(dim)
    scales = {}
    for key, value in state.items():
        if key.startswith('fpn'):
            number, rest = key.removeprefix('fpn').split('.', 1)
            scales[f'scales.{int(number) - 1}.{rest}'] = value
    load_strictly(pyramid, scales, 'golden')
    return backbone.eval(), pyramid.eval()


def assert_maps(maps, expected):
    assert len(maps) == len(expected)
    for found, wanted in zip(maps, expected, strict=True):
        assert found.is_contiguous()
        torch.testing.assert_close(found, wanted.float(), **FLOAT32)


@torch.no_grad()
def test_segmentation_maps(golden):
    """Relative position bias, block outputs without norm, and the four scales of the pyramid."""
    reference = golden('cae_downstream_tiny.pt')
    backbone, pyramid = backbone_and_pyramid(reference, reference['config']['img_size'])
    features = backbone(reference['input'])
    assert_maps(features, reference['raw_features'])
    assert_maps(pyramid(features), reference['outputs'])


def test_position_table_resized_on_loading(golden):
    """What the authors' loader makes of a pretraining checkpoint's table for a larger grid, and what ours does on loading."""
    resize = golden('cae_downstream_tiny.pt')['pos_embed_resize']
    table = resize_position_table(resize['src'][:, 1:], tuple(resize['src_grid']), tuple(resize['dst_grid']))
    torch.testing.assert_close(table, resize['dst'][:, 1:], rtol=0, atol=1e-6)

    dim, patch = resize['src'].shape[-1], 4
    model = CAEViT(dict(embed_dims=dim, num_layers=1, num_heads=1), img_size=tuple(patch * n for n in resize['dst_grid']), patch_size=patch)
    report = load_strictly(model, {**model.state_dict(), 'pos_embed': resize['src']}, 'golden')
    assert 'resized (pos_embed)' in report
    torch.testing.assert_close(model.pos_embed, resize['dst'], rtol=0, atol=1e-6)


@pytest.mark.parametrize('number', range(3))
@torch.no_grad()
def test_detection_at_several_image_sizes(golden, number):
    """The position table follows the image in two stages, as the authors resize it, and the maps follow the table."""
    reference = golden('cae_detection_tiny.pt')
    backbone, pyramid = backbone_and_pyramid(reference, tuple(reference['config']['img_size']))
    image = reference['inputs'][number].float()
    table = backbone.positions(backbone.grid_of(image.shape[-2:]))
    torch.testing.assert_close(table, reference['pos_embed_used'][number], rtol=0, atol=5e-6)
    assert_maps(pyramid(backbone(image)), reference['outputs'][number])


def test_detection_table_comes_from_the_pretraining_table(golden):
    """The reference grid's table is the checkpoint's square one, resized on loading."""
    reference = golden('cae_detection_tiny.pt')
    backbone, _ = backbone_and_pyramid(reference, tuple(reference['config']['img_size']))
    state = {**backbone.state_dict(), 'pos_embed': reference['ckpt_pos_embed']}
    load_strictly(backbone, state, 'golden')
    torch.testing.assert_close(backbone.pos_embed, reference['state_dict']['pos_embed'].float(), rtol=0, atol=1e-6)
