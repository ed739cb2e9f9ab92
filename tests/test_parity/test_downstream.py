"""Encoder and pyramid against the reference of segmentation and detection, and against the authors' own maps where they are."""

import pytest
import torch
from reference import golden
from reference.ours import backbone_and_pyramid

from mmcae.checkpoints import load_strictly
from mmcae.checkpoints.tables import resize_position_table
from mmcae.models import CAEViT

# The maps are float32 results of another order of summation.
FLOAT32 = dict(rtol=1e-5, atol=1e-5)


@pytest.fixture(params=['segmentation', *golden.present('cae_downstream_tiny.pt')])
def segmentation(request):
    return golden.load(request.param)


@pytest.fixture(params=['detection', *golden.present('cae_detection_tiny.pt')])
def detection(request):
    return golden.load(request.param)


def assert_maps(maps, expected):
    assert len(maps) == len(expected)
    for found, wanted in zip(maps, expected, strict=True):
        assert found.is_contiguous()
        torch.testing.assert_close(found, wanted.float(), **FLOAT32)


@torch.no_grad()
def test_segmentation_maps(segmentation):
    """Relative position bias, block outputs without norm, and the four scales of the pyramid."""
    backbone, pyramid = backbone_and_pyramid(segmentation, segmentation['config']['img_size'])
    features = backbone(segmentation['input'])
    assert_maps(features, segmentation['raw_features'])
    assert_maps(pyramid(features), segmentation['outputs'])


def test_position_table_resized_on_loading(segmentation):
    """What the authors' loader makes of a pretraining checkpoint's table for a larger grid, and what ours does on loading."""
    resize = segmentation['pos_embed_resize']
    table = resize_position_table(resize['src'][:, 1:], tuple(resize['src_grid']), tuple(resize['dst_grid']))
    torch.testing.assert_close(table, resize['dst'][:, 1:], rtol=0, atol=1e-6)

    dim, patch = resize['src'].shape[-1], 4
    model = CAEViT(dict(embed_dims=dim, num_layers=1, num_heads=1), img_size=tuple(patch * n for n in resize['dst_grid']), patch_size=patch)
    report = load_strictly(model, {**model.state_dict(), 'pos_embed': resize['src']}, 'reference')
    assert 'resized (pos_embed)' in report
    torch.testing.assert_close(model.pos_embed, resize['dst'], rtol=0, atol=1e-6)


@pytest.mark.parametrize('number', range(3))
@torch.no_grad()
def test_detection_at_several_image_sizes(detection, number):
    """The position table follows the image in two stages, as the authors resize it, and the maps follow the table."""
    backbone, pyramid = backbone_and_pyramid(detection, tuple(detection['config']['img_size']))
    image = detection['inputs'][number].float()
    table = backbone.positions(backbone.grid_of(image.shape[-2:]))
    torch.testing.assert_close(table, detection['pos_embed_used'][number], rtol=0, atol=5e-6)
    assert_maps(pyramid(backbone(image)), detection['outputs'][number])


def test_detection_table_comes_from_the_pretraining_table(detection):
    """The reference grid's table is the checkpoint's square one, resized on loading."""
    backbone, _ = backbone_and_pyramid(detection, tuple(detection['config']['img_size']))
    state = {**backbone.state_dict(), 'pos_embed': detection['ckpt_pos_embed']}
    load_strictly(backbone, state, 'reference')
    torch.testing.assert_close(backbone.pos_embed, detection['state_dict']['pos_embed'].float(), rtol=0, atol=1e-6)
