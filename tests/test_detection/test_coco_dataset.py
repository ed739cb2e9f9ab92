"""Annotation files and images as people have them: what works, and what each mistake is called."""

import json
import subprocess
import sys

import pytest
from mmengine.registry import init_default_scope
from PIL import Image

from mmcae.registry import DATASETS
from mmcae.utils.errors import DataError

PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(133, 80), keep_ratio=True),
    dict(type='PackDetInputs'),
]


@pytest.fixture
def dataset():
    """mmcae.CocoDataset over a folder that the fixture `coco` wrote."""

    def build(root, classes=('cat', 'dog'), **settings):
        init_default_scope('mmdet')
        settings = dict(pipeline=PIPELINE, filter_cfg=dict(filter_empty_gt=True, min_size=32), serialize_data=False) | settings
        where = dict(data_root=str(root), ann_file='annotations.json', data_prefix=dict(img='images/'))
        return DATASETS.build(dict(type='mmcae.CocoDataset', metainfo=dict(classes=classes), **where, **settings))

    return build


def labels(sample):
    return sample['data_samples'].gt_instances.labels.tolist()


def test_good_data(coco, dataset):
    data = dataset(coco(count=3, size=(40, 50)))
    assert len(data) == 3 and labels(data[0]) == [0, 1]
    assert data[0]['data_samples'].gt_instances.masks.masks.shape == (2, 80, 100)


def test_it_is_mmdets(coco, dataset):
    """Where nothing is wrong, every sample is the one of mmdet's own dataset."""
    root = coco(count=2)
    ours = dataset(root)
    theirs = DATASETS.build(
        dict(
            type='mmdet.CocoDataset',
            metainfo=dict(classes=('cat', 'dog')),
            data_root=str(root),
            ann_file='annotations.json',
            data_prefix=dict(img='images/'),
            pipeline=PIPELINE,
        )
    )
    for i in range(2):
        a, b = ours[i], theirs[i]
        assert (a['inputs'] == b['inputs']).all() and labels(a) == labels(b)
        assert (a['data_samples'].gt_instances.masks.masks == b['data_samples'].gt_instances.masks.masks).all()


def test_classes_are_a_part_of_the_categories(coco, dataset):
    assert labels(dataset(coco(count=1), classes=('dog',))[0]) == [0]


def test_images_without_objects(coco, dataset, coco_object):
    """Left out of training, kept in a test."""
    root = coco(count=3, annotations=[coco_object(1, 1)])
    assert len(dataset(root)) == 1
    everything = dataset(root, test_mode=True)
    assert [labels(everything[i]) for i in range(3)] == [[], [0], []]


def test_a_test_set_without_annotations(coco, dataset):
    root = coco(count=2)
    content = json.loads((root / 'annotations.json').read_text())
    del content['annotations']
    (root / 'annotations.json').write_text(json.dumps(content))
    assert len(dataset(root, test_mode=True)) == 2


def test_degenerate_boxes_are_left_out(coco, dataset, coco_object):
    boxes = [(5, 5, 0, 10), (5, 5, 0.5, 10), (500, 500, 10, 10), (float('nan'), 5, 5, 5), (5, 5, 10, 10)]
    root = coco(count=1, annotations=[coco_object(i, 0, box=box) for i, box in enumerate(boxes, 1)])
    found = dataset(root)[0]['data_samples'].gt_instances
    assert found.bboxes.tensor.tolist() == [[6.25, 6.25, 18.75, 18.75]]  # 80x64 pixels, resized to 100x80


def test_one_pixel_wide(coco, dataset):
    """Too small to train on, but a test image as any other."""
    root = coco(count=1, size=(50, 1), annotations=[])
    assert dataset(root, test_mode=True)[0]['inputs'].shape == (3, 133, 3)
    with pytest.raises(DataError, match=r'none of its 1 images can be used; .*min_size'):
        dataset(root)


def test_too_thin_to_resize(coco, dataset):
    root = coco(count=1, size=(5000, 1), annotations=[])
    with pytest.raises(DataError, match=r'0\.png \(1x5000 pixels, width x height\) cannot be prepared: .*resize'):
        dataset(root, test_mode=True)[0]


def test_not_json(coco, dataset):
    root = coco(count=1)
    for text in ('<annotation>', ''):
        (root / 'annotations.json').write_text(text)
        with pytest.raises(DataError, match=r'annotations\.json is no COCO annotation file, because it is no JSON'):
            dataset(root)


@pytest.mark.parametrize(
    ('content', 'found'),
    [
        ([1, 2], 'list'),
        ({'shapes': [], 'imagePath': 'a.png'}, 'the keys shapes, imagePath'),
        ({'images': {}, 'categories': {}}, 'images'),
        ({}, 'it needs lists'),
    ],
)
def test_another_format(coco, dataset, content, found):
    root = coco(count=1)
    (root / 'annotations.json').write_text(json.dumps(content))
    with pytest.raises(DataError, match=f'is no COCO annotation file.*{found}'):
        dataset(root)


@pytest.mark.parametrize(
    ('classes', 'message'),
    [
        (('cat', 'Dog'), r"no category 'Dog'; did you mean 'dog'\? \(1 of 2 classes are missing\)"),
        (('CAT', 'dog'), r"no category 'CAT'; did you mean 'cat'\?"),
        (('person', 'car'), r"no category 'person' \(2 of 2 .*It has 'cat', 'dog'.*metainfo=dict\(classes"),
        (('dog', 'cat'), "another order than the classes, or one twice: 'cat', 'dog', but metainfo.classes is 'dog', 'cat'"),
    ],
)
def test_other_classes(coco, dataset, classes, message):
    with pytest.raises(DataError, match=message):
        dataset(coco(count=1), classes=classes)


def test_a_category_twice(coco, dataset):
    with pytest.raises(DataError, match='or one twice'):
        dataset(coco(count=1, categories=('cat', 'cat', 'dog')))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(bbox=None), 'annotation 1 has no `bbox`'),
        (dict(bbox=[1, 2, 3]), r'annotation 1 has the bbox \[1, 2, 3\]; it needs four numbers'),
        (dict(area=None), 'annotation 1 has no `area`'),
        (dict(segmentation=None), 'annotation 1 has no `segmentation`; for boxes alone take a detector without masks'),
        (dict(segmentation=[]), 'annotation 1 has no `segmentation`'),
        (dict(segmentation=dict(size=[80, 64], counts=[64 * 80])), r'a mask of \(height, width\) \[80, 64\], but its image has \[64, 80\]'),
        (dict(image_id=7), 'annotation 1 belongs to image 7, and there is no image with this id'),
        (dict(category_id=7), 'annotation 1 has the category 7, and there is no category with this id'),
    ],
)
def test_broken_annotations(coco, dataset, coco_object, changes, message):
    root = coco(count=1, annotations=[coco_object(1, 0, **changes)])
    with pytest.raises(DataError, match=message):
        dataset(root)


def test_boxes_need_no_masks(coco, dataset, coco_object):
    root = coco(count=1, annotations=[coco_object(1, 0, segmentation=None)])
    boxes_only = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True), dict(type='PackDetInputs')]
    assert labels(dataset(root, pipeline=boxes_only)[0]) == [0]


def test_scoring_needs_iscrowd(coco, dataset, coco_object):
    """COCO's own evaluation stops without it, training does not."""
    root = coco(count=1, annotations=[coco_object(1, 0, iscrowd=None)])
    assert len(dataset(root)) == 1
    with pytest.raises(DataError, match='has no `iscrowd`'):
        dataset(root, test_mode=True)


@pytest.mark.parametrize('key', ['width', 'height', 'file_name'])
def test_incomplete_images(coco, dataset, key):
    image = dict(id=0, file_name='0.png', width=80, height=64)
    del image[key]
    with pytest.raises(DataError, match=f'has no `{key}`'):
        dataset(coco(count=1, images=[image]))


def test_image_of_another_size(coco, dataset):
    """Above all a photograph with an EXIF rotation, whose masks would be scrambled without an error."""
    root = coco(count=1)
    Image.new('RGB', (64, 80)).save(root / 'images/0.png')
    with pytest.raises(DataError, match=r'0\.png is 64x80 pixels \(width x height\), but .*annotations\.json says 80x64.*EXIF'):
        dataset(root)[0]


def test_damaged_image(coco, dataset):
    root = coco(count=1)
    (root / 'images/0.png').write_bytes(b'no image')
    with pytest.raises(DataError, match=r'0\.png .* cannot be prepared: repair it or take it out'):
        dataset(root)[0]


def test_pretraining_does_without_mmdet():
    """Our packages can be imported, and what is registered looked up, where mmdet is not installed."""
    program = (
        'import sys\n'
        'sys.modules["mmdet"] = None\n'
        'from mmcae.registry import DATASETS, MODELS\n'
        'assert DATASETS.get("mmcae.CocoDataset") and MODELS.get("mmcae.RPNHead") and MODELS.get("mmcae.CAE")'
    )
    subprocess.run([sys.executable, '-c', program], check=True)
