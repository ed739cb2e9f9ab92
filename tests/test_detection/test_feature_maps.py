"""The maps that backbone and neck hand to RoIAlign: mmcv's, on CPU, silently misreads a map that is not contiguous."""

import pytest
import torch

from mmcae.models import CAEViT

MASK_RCNN = 'configs/mask_rcnn/mask-rcnn_vit-base-p16_cae_16xb2-amp-1x_coco.py'
VITDET = 'configs/mask_rcnn/mask-rcnn_vitdet-base-p16_cae_32xb2-amp-lsj-1024-100e_coco.py'
SIZES = [(96, 160), (64, 64), (160, 96), (32, 224)]  # that of the position table, a square one, portrait, and a band


def slow_roi_align(maps, rois, stride, size, samples=0):
    """RoIAlign as its paper defines it, in float64: the mean of bilinear samples on a regular grid in each of size x size cells.

    Args:
        maps: (B, C, h, w).
        rois: (n, 5), the image's number and left, top, right, bottom in pixels of the image.
        samples: Samples per cell and direction; 0 takes one for every pixel of the map that the cell is long.

    Returns:
        (n, C, size, size).
    """
    maps, found = maps.double(), []
    for number, left, top, right, bottom in rois.double().tolist():
        left, top, right, bottom = (value / stride - 0.5 for value in (left, top, right, bottom))
        columns, rows = (
            bilinear_weights(start, (end - start) / size, size, samples or max(1, -int(-(end - start) // size)), length)
            for start, end, length in ((left, right, maps.shape[3]), (top, bottom, maps.shape[2]))
        )
        found.append(torch.einsum('yh,chw,xw->cyx', rows, maps[int(number)], columns))
    return torch.stack(found)


def bilinear_weights(start, step, size, samples, length):
    """(size, length): how much each position along a map counts in each cell; samples beyond the map by more than a pixel count nothing."""
    weights = torch.zeros(size, length, dtype=torch.float64)
    for cell in range(size):
        for sample in range(samples):
            position = start + (cell + (sample + 0.5) / samples) * step
            if not -1 <= position <= length:
                continue
            position = min(max(position, 0), length - 1)
            below = min(int(position), length - 1)
            above = min(below + 1, length - 1)
            weights[cell, below] += (1 - (position - below)) / samples
            weights[cell, above] += (position - below) / samples
    return weights


def random_rois(size, batch, count=6):
    corners = torch.rand(count, 2, 2) * torch.tensor([size[1], size[0]])
    corners = corners.sort(dim=1).values
    return torch.cat((torch.randint(0, batch, (count, 1)), corners.flatten(1)), dim=1)


def assert_read_right(maps, strides, size):
    from mmcv.ops import RoIAlign

    rois = random_rois(size, len(maps[0]))
    for features, stride in zip(maps, strides, strict=True):
        assert features.is_contiguous()
        for cells, samples in ((7, 0), (14, 0), (7, 2)):
            found = RoIAlign(cells, 1 / stride, samples)(features, rois)
            wanted = slow_roi_align(features, rois, stride, cells, samples)
            torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize(('training', 'with_cp'), [(False, False), (True, False), (True, True)])
def test_every_map_of_the_detector(detector, size, training, with_cp):
    """Encoder, deconvolution pyramid and feature pyramid, each read as RoIAlign reads it; last, what the box head gets."""
    model = detector(model__backbone__with_cp=with_cp).train(training)
    with torch.set_grad_enabled(training):
        encoded = model.backbone(torch.randn(2, 3, *size))
        assert_read_right([m.detach() for m in encoded], [16] * 4, size)
        pyramid = model.neck[0](encoded)
        assert [tuple(m.shape[2:]) for m in pyramid] == [(size[0] // s, size[1] // s) for s in (4, 8, 16, 32)]
        assert_read_right([m.detach() for m in pyramid], [4, 8, 16, 32], size)
        features = model.neck[1](pyramid)
    assert_read_right([m.detach() for m in features], [4, 8, 16, 32, 64], size)
    assert_box_head_gets(model.roi_head.bbox_roi_extractor, features, size)


@pytest.mark.parametrize('size', [(96, 96), (64, 192)])  # that of the position table and windows that stick out, and another
@pytest.mark.parametrize(('training', 'with_cp'), [(False, False), (True, False), (True, True)])
def test_every_map_of_vitdet(detector, size, training, with_cp):
    """Encoder with windows and simple feature pyramid; last, what the box head gets."""
    model = detector(VITDET, model__backbone__with_cp=with_cp).train(training)
    with torch.set_grad_enabled(training):
        encoded = model.backbone(torch.randn(2, 3, *size))
        features = model.neck(encoded)
    assert_read_right([m.detach() for m in encoded], [16], size)
    assert [tuple(m.shape[2:]) for m in features[:4]] == [(size[0] // s, size[1] // s) for s in (4, 8, 16, 32)]
    assert_read_right([m.detach() for m in features], [4, 8, 16, 32, 64], size)
    assert_box_head_gets(model.roi_head.bbox_roi_extractor, features, size)


def assert_box_head_gets(extractor, features, size):
    """Each box's cut from the level that belongs to its size."""
    rois = random_rois(size, 2)
    levels = extractor.map_roi_levels(rois, 4)
    found = extractor(features[:4], rois).detach().double()
    for i, level in enumerate(levels.tolist()):
        wanted = slow_roi_align(features[level].detach(), rois[i : i + 1], 4 * 2**level, 7)
        torch.testing.assert_close(found[i : i + 1], wanted, rtol=1e-4, atol=1e-5)


def test_gradients_through_roi_align(detector):
    """The gradient that RoIAlign hands back to the encoder is that of the slow one."""
    model = detector().eval()
    image, rois = torch.randn(1, 3, 64, 96), random_rois((64, 96), 1)
    weight = torch.randn(len(rois), 16, 7, 7)

    def gradient(align):
        model.zero_grad()
        features = model.neck(model.backbone(image))
        sum((align(i, features[i]) * weight).sum() for i in range(4)).backward()
        return [p.grad.double() for name, p in model.named_parameters() if p.grad is not None and name.startswith(('backbone', 'neck'))]

    found = gradient(lambda i, x: model.roi_head.bbox_roi_extractor.roi_layers[i](x, rois))
    wanted = gradient(lambda i, x: slow_roi_align(x, rois, 4 * 2**i, 7).float())
    assert len(found) > 50
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max() + 1))


@torch.no_grad()
@pytest.mark.parametrize('final_norm', [False, True])
def test_maps_of_one_block(final_norm):
    """Features of the last block alone, for pyramids of other kinds."""
    backbone = CAEViT(dict(embed_dims=8, num_layers=2, num_heads=2), 64, out_type='featmap', final_norm=final_norm).eval()
    assert_read_right(backbone(torch.randn(2, 3, 64, 96)), [16], (64, 96))


@torch.no_grad()
@pytest.mark.parametrize('recipe', [MASK_RCNN, VITDET])
def test_channels_last(detector, recipe):
    """Images and weights in channels_last, as people set it for speed, change nothing in what the heads get."""
    model, images, rois = detector(recipe).eval(), torch.randn(2, 3, 64, 96), random_rois((64, 96), 2)
    wanted = model.roi_head.bbox_roi_extractor(model.extract_feat(images)[:4], rois)
    model.to(memory_format=torch.channels_last)
    maps = model.extract_feat(images.to(memory_format=torch.channels_last))[:4]
    torch.testing.assert_close(model.roi_head.bbox_roi_extractor(maps, rois), wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_bfloat16(detector):
    """RoIAlign in float32 on maps in bfloat16, which mmcv's has not."""
    model, rois = detector().eval(), random_rois((64, 96), 1)
    maps = tuple(torch.randn(1, 16, 64 // s, 96 // s, dtype=torch.bfloat16) for s in (4, 8, 16, 32))
    found = model.roi_head.bbox_roi_extractor(maps, rois)
    assert torch.equal(found, model.roi_head.bbox_roi_extractor(tuple(m.float() for m in maps), rois))
