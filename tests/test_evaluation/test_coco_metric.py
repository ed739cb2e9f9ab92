"""mmcae.CocoMetric: the scores of mmdet's where a file is right, and right scores where COCO's code goes wrong."""

import json

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from pycocotools import mask as coco_mask

from mmcae.registry import METRICS
from mmcae.utils.errors import DataError

SIZE = HEIGHT, WIDTH = 60, 80
CLASSES = ('cat', 'dog')


def bitmap(box):
    left, top, width, height = box
    mask = np.zeros(SIZE, np.uint8)
    mask[top : top + height, left : left + width] = 1
    return mask


def segmentation(box, kind):
    left, top, width, height = box
    if kind == 'polygon':
        return [[left, top, left + width, top, left + width, top + height, left, top + height]]
    if kind == 'compressed':
        return dict(size=list(SIZE), counts=coco_mask.encode(np.asfortranarray(bitmap(box)))['counts'].decode())
    flat = bitmap(box).ravel(order='F')
    edges = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), len(flat)]
    return dict(size=list(SIZE), counts=np.diff(edges).tolist())


@pytest.fixture
def write(tmp_path):
    """Write an annotation file: four images with an object of each class; returns its path and the objects by image."""

    def make(first_id=1, kinds=('polygon', 'compressed', 'runs'), change=lambda content: None):
        random, annotations, objects = np.random.default_rng(0), [], {i: [] for i in range(4)}
        for i in objects:
            for label in range(2):
                box = [int(value) for value in random.integers((1, 1, 10, 10), (40, 30, 40, 30))]
                number = len(annotations)
                annotations.append(
                    dict(
                        id=number + first_id,
                        image_id=i,
                        category_id=label + 1,
                        bbox=box,
                        area=box[2] * box[3],
                        iscrowd=0,
                        segmentation=segmentation(box, kinds[number % len(kinds)]),
                    )
                )
                objects[i].append((box, label))
        content = dict(
            images=[dict(id=i, file_name=f'{i}.png', height=HEIGHT, width=WIDTH) for i in objects],
            annotations=annotations,
            categories=[dict(id=i, name=name) for i, name in enumerate(CLASSES, 1)],
        )
        change(content)
        (tmp_path / 'annotations.json').write_text(json.dumps(content))
        return tmp_path / 'annotations.json', objects

    return make


def scores(path, objects, kind='mmcae.CocoMetric', noise=0, classes=CLASSES, **settings):
    """The metrics of predictions that are the objects, moved by some pixels, and some that are wrong."""
    init_default_scope('mmdet')
    metric = METRICS.build(dict(type=kind, ann_file=str(path), metric=['bbox', 'segm'], **settings))
    metric.dataset_meta = dict(classes=classes)
    random = np.random.default_rng(1)
    for i, found in objects.items():
        boxes = np.array([box for box, _ in found]) + random.integers(0, noise + 1, (len(found), 4))
        masks = torch.as_tensor(np.stack([bitmap(box) for box in boxes])).bool()
        boxes = torch.as_tensor(boxes).float()
        boxes[:, 2:] += boxes[:, :2]
        labels = torch.tensor([label for _, label in found])
        result = dict(bboxes=boxes, labels=labels, scores=torch.rand(len(boxes)) if noise else torch.ones(len(boxes)), masks=masks)
        metric.process({}, [dict(img_id=i, ori_shape=SIZE, pred_instances=result)])
    return metric.evaluate(len(objects))


@pytest.mark.parametrize('first_id', [0, 1, -4, 10**12])
def test_perfect_predictions(write, first_id):
    """Whatever the ids; COCO's code takes the id 0 for "not matched"."""
    found = scores(*write(first_id))
    assert found['coco/bbox_mAP'] == found['coco/segm_mAP'] == 1


@pytest.mark.parametrize('kinds', [('polygon',), ('compressed',), ('runs',), ('polygon', 'compressed', 'runs')])
def test_the_scores_are_mmdets(write, kinds):
    """Of a right file, with imperfect predictions."""
    written = write(kinds=kinds)
    torch.manual_seed(0)
    ours = scores(*written, noise=3)
    torch.manual_seed(0)
    theirs = scores(*written, kind='mmdet.CocoMetric', noise=3)
    assert ours == theirs and 0.1 < ours['coco/bbox_mAP'] < 0.9


def test_objects_that_nothing_can_match(write):
    """An empty box, and one outside of its image, are left out; a crowd is ignored, and an RLE in a list is read."""

    def change(content):
        first = content['annotations'][0]
        content['annotations'] += [
            dict(first, id=90, bbox=[4, 5, 0, 0]),
            dict(first, id=91, bbox=[900, 5, 10, 10]),
            dict(first, id=92, bbox=[float('nan'), 5, 10, 10]),
            dict(first, id=93, iscrowd=1, segmentation=segmentation([60, 40, 10, 10], 'runs'), bbox=[60, 40, 10, 10]),
        ]
        first['segmentation'] = [segmentation(first['bbox'], 'runs')]

    found = scores(*write(change=change))
    assert found['coco/bbox_mAP'] == found['coco/segm_mAP'] == 1


def test_masks_that_do_not_add_up(write):
    def change(content):
        content['annotations'][2]['segmentation'] = dict(size=list(SIZE), counts=[100, 50])

    path, objects = write(change=change)
    with pytest.raises(DataError, match=r'annotations\.json: annotation 3 has RLE counts that add up to 150 pixels'):
        scores(path, objects)


def test_categories_of_another_file(write):
    """The evaluator is set up for other data than the data set: said before anything runs."""
    path, objects = write()
    with pytest.raises(DataError, match=r"annotations\.json has no category 'horse'"):
        scores(path, objects, classes=('horse',))


def test_nothing_to_score_against(write, tmp_path):
    for change in (lambda content: content.update(annotations=[]), lambda content: content.pop('annotations')):
        path, objects = write(change=change)
        with pytest.raises(DataError, match=r'annotations\.json has no annotations to score against; .*format_only=True'):
            scores(path, objects)
        assert scores(path, objects, format_only=True, outfile_prefix=str(tmp_path / 'out')) == {}
        assert len(json.loads((tmp_path / 'out.bbox.json').read_text())) == 8
