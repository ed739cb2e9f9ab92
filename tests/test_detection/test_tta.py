"""Test-time augmentation with masks: views are flipped back, compete once, and masks stay with their boxes."""

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import nn

from mmcae.registry import MODELS

HEIGHT, WIDTH = 20, 30
SETTINGS = ConfigDict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)


class Detector(nn.Module):
    """Stands where the detector stands; these tests bring its predictions."""

    def test_step(self, data):
        raise NotImplementedError


@pytest.fixture
def tta():
    def build(kind='mmcae.MaskTTAModel', **changes):
        init_default_scope('mmdet')
        return MODELS.build(dict(type=kind, tta_cfg=ConfigDict(SETTINGS, **changes), module=Detector()))

    return build


def view(boxes, scores, labels, flip=None, masks=True):
    """What a detector finds in a view: given in the coordinates of the image, and stored in those of the (flipped) view."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.bbox import bbox_flip

    drawn = torch.zeros(len(boxes), HEIGHT, WIDTH, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(drawn, boxes, strict=True):
        mask[top:bottom, left:right] = True
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    if flip:
        boxes = bbox_flip(boxes, (HEIGHT, WIDTH), flip)
        drawn = drawn.flip({'horizontal': (2,), 'vertical': (1,), 'diagonal': (1, 2)}[flip])
    sample = DetDataSample(metainfo=dict(ori_shape=(HEIGHT, WIDTH), flip=flip is not None, flip_direction=flip))
    sample.pred_instances = InstanceData(bboxes=boxes, scores=torch.tensor(scores), labels=torch.tensor(labels, dtype=torch.long))
    if masks:
        sample.pred_instances.masks = drawn
    return sample


@pytest.mark.parametrize('flip', ['horizontal', 'vertical', 'diagonal'])
def test_an_object_seen_twice_counts_once(tta, flip):
    boxes = [(2, 3, 10, 12), (15, 5, 28, 18)]
    merged = tta().merge_preds([[view(boxes, [0.9, 0.4], [0, 1]), view(boxes, [0.8, 0.7], [0, 1], flip)]])[0].pred_instances
    assert merged.scores.tolist() == pytest.approx([0.9, 0.7]) and merged.labels.tolist() == [0, 1]
    assert merged.bboxes.tolist() == [list(map(float, box)) for box in boxes]
    wanted = view(boxes, [1.0, 1.0], [0, 1]).pred_instances.masks
    assert torch.equal(merged.masks, wanted)


def test_what_one_view_finds_is_kept(tta):
    merged = tta().merge_preds([[view([(0, 0, 5, 5)], [0.3], [1]), view([(20, 10, 30, 20)], [0.6], [0], 'horizontal')]])[0].pred_instances
    assert merged.labels.tolist() == [0, 1] and merged.masks.flatten(1).sum(1).tolist() == [100, 25]


def test_best_are_kept(tta):
    boxes = [(i * 6, 0, i * 6 + 5, 5) for i in range(4)]
    merged = tta(max_per_img=2).merge_preds([[view(boxes, [0.1, 0.4, 0.3, 0.2], [0] * 4)]])[0].pred_instances
    assert merged.scores.tolist() == pytest.approx([0.4, 0.3]) and len(merged.masks) == 2


def test_nothing_found(tta):
    merged = tta().merge_preds([[view([], [], []), view([], [], [], 'horizontal')]])[0].pred_instances
    assert len(merged) == 0 and merged.masks.shape == (0, HEIGHT, WIDTH)


def test_without_masks_it_is_mmdets(tta):
    boxes, more = [(2, 3, 10, 12), (15, 5, 28, 18)], [(2, 3, 10, 11), (1, 1, 4, 4)]

    def views():
        return [view(boxes, [0.9, 0.4], [0, 1], masks=False), view(more, [0.8, 0.7], [0, 1], 'horizontal', masks=False)]

    found, wanted = (tta(kind).merge_preds([views()])[0].pred_instances for kind in ('mmcae.MaskTTAModel', 'DetTTAModel'))
    assert torch.equal(found.bboxes, wanted.bboxes) and torch.equal(found.scores, wanted.scores)
    assert torch.equal(found.labels, wanted.labels) and 'masks' not in found
