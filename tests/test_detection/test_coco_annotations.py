"""Annotations of a COCO file that lie: what is read, what is left out and counted, what is refused."""

import copy
import json
import logging
import re

import numpy as np
import pytest
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from PIL import Image
from pycocotools import mask as coco_mask

from mmcae.datasets.sources.coco.check import check_annotations
from mmcae.datasets.sources.coco.file import CheckedCOCO
from mmcae.datasets.sources.coco.masks import MaskError, check_mask, decompress
from mmcae.registry import DATASETS
from mmcae.utils.errors import ConfigError, DataError

SIZE = HEIGHT, WIDTH = 30, 40
BOX = (4, 5, 20, 12)


def bitmap(box=BOX):
    left, top, width, height = box
    mask = np.zeros(SIZE, np.uint8)
    mask[top : top + height, left : left + width] = 1
    return mask


def run_lengths(mask):
    """Uncompressed run lengths, slowly: down the columns, the background first."""
    runs, current = [0], 0
    for value in mask.ravel(order='F').tolist():
        if value != current:
            runs.append(0)
            current = value
        runs[-1] += 1
    return runs


def rle(box=BOX, compressed=False):
    mask = bitmap(box)
    counts = coco_mask.encode(np.asfortranarray(mask))['counts'].decode() if compressed else run_lengths(mask)
    return dict(size=list(SIZE), counts=counts)


def polygon(box=BOX):
    left, top, width, height = box
    return [left, top, left + width, top, left + width, top + height, left, top + height]


def annotation(number=1, box=BOX, **changes):
    return dict(dict(id=number, image_id=0, category_id=1, bbox=list(box), area=240, iscrowd=0, segmentation=[polygon(box)]), **changes)


def content(*annotations, **changes):
    images = [dict(id=0, file_name='0.png', height=HEIGHT, width=WIDTH)]
    found = dict(images=images, annotations=list(annotations), categories=[dict(id=1, name='cat'), dict(id=2, name='dog')])
    return {**found, **changes}


def check(*annotations, scored=False, classes=('cat', 'dog'), **changes):
    """The checked file, and the objects in it."""
    found = copy.deepcopy(content(*annotations, **changes))
    return found, check_annotations(found, 'a.json', classes, masks=True, scored=scored)


# ---- masks


@pytest.mark.parametrize('seed', range(20))
def test_run_lengths_of_compressed_masks(seed):
    random = np.random.default_rng(seed)
    mask = random.random(random.integers(1, 60, 2)) < random.random()
    mask[: random.integers(60)] = seed % 2  # long runs too
    text = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))['counts'].decode()
    assert decompress(text) == run_lengths(mask)


@pytest.mark.parametrize(
    'mask',
    [
        rle(),
        rle(compressed=True),
        [rle()],
        [rle(compressed=True)],
        [rle((4, 5, 20, 6)), rle((4, 11, 20, 6), compressed=True)],
        [rle((4, 5, 20, 6)), polygon((4, 11, 20, 6))],
        dict(size=['30', 40.0], counts=[str(run) for run in run_lengths(bitmap())]),
        [polygon()],
        [[str(value) for value in polygon()]],
        [polygon(), [1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7]],  # the parts that are polygons stay
    ],
)
def test_masks_that_are_read(mask):
    """Whatever the form, pycocotools makes the same pixels of what is handed on."""
    found, problem, box, _ = check_mask(mask, SIZE)
    rles = coco_mask.frPyObjects(found, *SIZE) if isinstance(found, list) else [found]
    assert problem is None and (coco_mask.decode(coco_mask.merge(rles)) == bitmap()).all()
    assert tuple(box) == (4, 5, 24, 17)


@pytest.mark.parametrize(
    ('mask', 'message'),
    [
        (dict(size=[30, 40], counts=[100, 50]), r'add up to 150 pixels, but its image has 30 x 40 = 1200'),
        (dict(size=[30, 40], counts=[100, 5000]), 'run length 5000'),
        (dict(size=[30, 40], counts=[1200, 1]), 'add up to 1201'),
        (dict(size=[30, 40], counts=[-5, 1205]), 'run length -5'),
        (dict(size=[30, 40], counts=[]), 'add up to 0'),
        (dict(size=[30, 40], counts=''), 'add up to 0'),
        (dict(size=[30, 40], counts=[0.5, 1199.5]), 'no whole numbers'),
        (dict(size=[30, 40], counts=[None, 1200]), 'no whole numbers'),
        (dict(size=[30, 40], counts=[[1200]]), 'no whole numbers'),
        (dict(size=[30, 40], counts=None), 'counts that are null'),
        (dict(size=[30, 40], counts={'0': 1200}), 'counts that are of the type dict'),
        (dict(size=[40, 30], counts=[1200]), r'\(height, width\) \[40, 30\], but its image has \[30, 40\]'),
        (dict(size=[30], counts=[1200]), r'\[30\]'),
        (dict(size='30x40', counts=[1200]), "'30x40'"),
        (dict(size=None, counts=[1200]), 'null'),
        (dict(counts=[1200]), 'without `size`'),
        (dict(size=[30, 40]), 'without `counts`'),
        (dict(size=[30, 40], counts=rle(compressed=True)['counts'][:-1]), 'break off|add up'),
        (dict(size=[30, 40], counts='no mask!'), "damaged at 'n'|damaged at ' '"),
        (dict(size=[30, 40], counts='é'), 'damaged'),
        (dict(size=[30, 40], counts='o' * 40), 'damaged'),
        (dict(size=[30, 40], counts='P'), 'break off'),
        ('polygon', 'of the type str'),
        ([10, 10, 20, 10, 20, 20], 'no list of numbers .*: 10'),
        ([[10, 10, None, 10, 20, 20]], 'no list of numbers'),
        ([[[10, 10], [20, 10], [20, 20]]], 'no list of numbers'),
        ([[10, 10, True, 10, 20, 20]], 'no list of numbers'),
        ([[10, 10, 'x', 10, 20, 20]], 'no list of numbers'),
        ([dict(x=1, y=2)], 'without `size`'),
        ([rle(), [1, 2, 'x', 4, 5, 6]], 'no list of numbers'),
    ],
)
def test_masks_that_are_refused(mask, message):
    with pytest.raises(MaskError, match=message):
        check_mask(mask, SIZE)
    with pytest.raises(DataError, match=f'a.json: annotation 1 has .*({message})'):
        check(annotation(segmentation=mask))


def test_every_cut_of_a_compressed_mask_is_refused():
    text = rle(compressed=True)['counts']
    for end in range(len(text)):
        with pytest.raises(MaskError):
            check_mask(dict(size=list(SIZE), counts=text[:end]), SIZE)


# ---- what is left out, and counted


LEFT_OUT = [
    (dict(iscrowd=1, segmentation=rle()), r'crowds \(`iscrowd`\)'),
    (dict(ignore=1), 'marked by `ignore`'),
    (dict(bbox=[4, 5, 0, 12]), 'with an empty box'),
    (dict(bbox=[4, 5, -3, 12]), 'with an empty box'),
    (dict(bbox=[400, 5, 20, 12]), 'with a box outside of the image'),
    (dict(bbox=[-30, 5, 20, 12]), 'with a box outside of the image'),
    (dict(bbox=[4, 5, 0.5, 12]), 'with a box narrower than a pixel'),
    (dict(bbox=[float('nan'), 5, 20, 12]), 'infinite, not a number, or far outside'),
    (dict(bbox=[4, 5, float('inf'), 12]), 'infinite, not a number, or far outside'),
    (dict(bbox=[4, 5, 1e30, 12]), 'infinite, not a number, or far outside'),
    (dict(bbox=[4, 5, 10**400, 12]), 'infinite, not a number, or far outside'),
    (dict(area=0), 'with an `area` of 0 or less'),
    (dict(area=-5), 'with an `area` of 0 or less'),
    (dict(area=float('nan')), 'not a number'),
    (dict(area=10**400), 'infinite'),
    (dict(segmentation=[[10, 10, 20, 20]]), 'polygons of fewer than three points'),
    (dict(segmentation=[[]]), 'polygons of fewer than three points'),
    (dict(segmentation=[[10, 10], [20, 10], [20, 20]]), 'polygons of fewer than three points'),
    (dict(segmentation=[[10, 10, 20, 10, 10, 10, 20, 10]]), 'polygons of fewer than three points'),
    (dict(segmentation=[[10, 10, 20, 10, 20, 20, 10]]), 'an odd number of coordinates'),
    (dict(segmentation=[[10, 10, 20, float('nan'), 20, 20]]), 'not a number'),
    (dict(segmentation=[[float('nan'), 10, 20, 10, 20, 20]]), 'not a number'),
    (dict(segmentation=[[10, 10, 20, float('-inf'), 20, 20]]), 'not a number'),
    (dict(segmentation=[[10, 10, 2e9, 10, 20, 20]]), 'far outside'),
    (dict(segmentation=dict(size=list(SIZE), counts=[1200])), 'with a mask of no pixel'),
    (dict(segmentation=[polygon((30, 20, 5, 5))]), 'with a mask outside of the box'),
]


@pytest.mark.parametrize(('changes', 'reason'), LEFT_OUT)
def test_left_out(changes, reason):
    """Beside a good object it is counted with its reason; alone it is none to learn from, and the file is refused."""
    _, objects = check(annotation(1), annotation(2, **changes))
    assert objects.count == 1 and sum(objects.left_out.values()) == 1
    with pytest.raises(DataError, match=rf'a\.json: none of its 1 annotations can be used.*They are: 1 .*({reason}).*\(annotation 7'):
        check(annotation(7, **changes))
    assert re.search(reason, objects.reasons())


def test_objects_of_other_categories():
    _, objects = check(annotation(1), annotation(2, category_id=2), classes=('cat',))
    assert objects.count == 1 and objects.reasons() == '1 of categories that are not among the classes (annotation 2 ...)'
    with pytest.raises(DataError, match='add their categories to metainfo.classes'):
        check(annotation(2, category_id=2), classes=('cat',))


def test_what_stays_in_the_file():
    """Crowds, since their regions are ignored; and for scoring what COCO's protocol counts, however small."""
    crowd, thin, flat = annotation(2, iscrowd=1), annotation(3, bbox=[4, 5, 0.5, 12]), annotation(4, area=0)
    broken = annotation(5, bbox=[4, 5, float('nan'), 12])
    trained, objects = check(annotation(1), crowd, thin, flat, broken)
    assert [found['bbox'] for found in trained['annotations']] == [list(BOX)] * 2 and objects.count == 1
    scored, objects = check(annotation(1), crowd, thin, flat, broken, scored=True)
    assert [found['area'] for found in scored['annotations']] == [240, 240, 240, 0] and objects.count == 3


@pytest.mark.parametrize('scored', [False, True])
def test_fractions(scored):
    """All of them, some, as corners or centres, in boxes or in polygons only; one in a hundred is a tiny object in the corner."""
    yolo = annotation(1, bbox=[0.1, 0.2, 0.5, 0.4], segmentation=[[0.1, 0.2, 0.6, 0.2, 0.6, 0.6]])
    whole = annotation(1, bbox=[0, 0, 1, 1])
    polygons = annotation(1, segmentation=[[0.1, 0.2, 0.6, 0.2, 0.6, 0.6]])
    for lie in (yolo, whole, polygons):
        for others in ([], [annotation(i) for i in range(2, 6)]):
            with pytest.raises(DataError, match=rf'coordinates of 1 of {1 + len(others)} annotations lie between 0 and 1.*YOLO'):
                check(lie, *others, scored=scored)
    _, objects = check(whole, *(annotation(i) for i in range(2, 102)), scored=scored)
    assert objects.count == 100 and 'coordinates from 0 to 1' in objects.reasons()


def from_corners(boxes, area=None):
    """Annotations whose boxes are corners (left, top, right, bottom)."""
    found = []
    for i, (left, top, right, bottom) in enumerate(boxes):
        box = (left, top, right - left, bottom - top)
        found.append(annotation(i, (left, top, right, bottom), area=area or box[2] * box[3], segmentation=[polygon(box)]))
    return found


CORNERS = 'look like \\(left, top, right, bottom\\)'


def test_corners_beyond_the_image():
    boxes = [(4, 5, 12, 10), (20, 15, 38, 29), (15, 3, 40, 30)]
    with pytest.raises(DataError, match=rf'{CORNERS}; .*2 of 3 .*annotation 1 with \[20, 15, 38, 29\] in an image of 40x30'):
        check_boxes(from_corners(boxes, area=50))


def check_boxes(annotations):
    return check_annotations(content(*annotations), 'a.json', ('cat', 'dog'))


@pytest.mark.parametrize('masks', [True, False])
def test_corners_within_the_image(masks):
    """Masks give them away, or areas."""
    annotations = from_corners([(2, 1, 12, 10), (3, 4, 20, 14), (1, 1, 15, 12)], area=60 if masks else None)
    with pytest.raises(DataError, match=rf'{CORNERS}; .*[23] of 3'):
        check(*annotations) if masks else check_boxes(annotations)


def test_boxes_that_are_no_corners():
    """Large boxes that could be corners, and one that reaches beyond its image, drawn in a hurry."""
    boxes = [(1, 2, 30, 20), (3, 4, 25, 21), (2, 2, 36, 27), (20, 5, 10, 20), (20, 5, 30, 20)]
    _, objects = check(*(annotation(i, box, area=box[2] * box[3]) for i, box in enumerate(boxes)))
    assert objects.count == 5 and objects.doubts == ['1 boxes reach far beyond their image (annotation 4 ...)'] and not objects.as_usual()
    _, objects = check(*(annotation(i, box, area=box[2] * box[3]) for i, box in enumerate(boxes[:3])))
    assert objects.count == 3 and objects.as_usual()


def test_boxes_that_do_not_fit_their_masks():
    """Such as by their centres."""
    _, objects = check(*(annotation(i, (14, 11, 20, 12), segmentation=[polygon(BOX)]) for i in range(3)))
    assert objects.summary() == '. 3 boxes do not fit their masks (annotation 0 ...)'


def test_images_that_are_listed_twice():
    """Right with the same objects each time; otherwise those of one entry are background in the other."""
    images = [dict(IMAGE, id=i) for i in range(2)]
    _, objects = check(annotation(1), annotation(2, image_id=1), images=images)
    assert objects.count == 2
    with pytest.raises(DataError, match=r'the images 0 and 1 are the same file, 0\.png, with other objects each'):
        check(annotation(1), annotation(2, (1, 1, 9, 9), image_id=1), images=images)


IMAGE = dict(id=0, file_name='0.png', height=HEIGHT, width=WIDTH)


# ---- what is read


def test_numbers_in_texts():
    """Texts where only one number can be meant; ids of images stay as they are, what refers to them follows."""
    text = annotation('7', image_id='0', category_id='1', bbox=['4', ' 5', '2e1', '12.0'], area='240', iscrowd='0')
    images = [dict(id=0.0, file_name='0.png', height='30', width=40.0)]
    found, objects = check(text, images=images, categories=[dict(id='1', name='cat'), dict(id=2, name=7)], classes=('cat', '7'))
    assert objects.count == 1 and objects.left_out == {}
    assert found['annotations'] == [annotation(1, bbox=[4, 5, 20, 12], segmentation=[polygon()])]
    assert found['images'] == [dict(id=0, file_name='0.png', height=30, width=40)]
    assert [category['id'] for category in found['categories']] == [1, 2]
    images = [dict(id='000', file_name='0.png', height=30, width=40), dict(id='b', file_name='1.png', height=30, width=40)]
    with pytest.raises(DataError, match='some images are numbers, those of others texts'):
        check(annotation(), images=[dict(images[0], id=5), images[1]])
    found, _ = check(annotation(image_id=0), images=images[:1])
    assert found['annotations'][0]['image_id'] == '000'
    found, _ = check(annotation(image_id='b'), images=images[1:])
    assert found['annotations'][0]['image_id'] == 'b'


def test_annotations_are_numbered_from_one():
    found, _ = check(annotation(0), annotation(5), annotation('x'), annotation(-3))
    assert [entry['id'] for entry in found['annotations']] == [1, 2, 3, 4]


def test_crowds_by_truth_values():
    found, objects = check(annotation(1, iscrowd=False), annotation(2, iscrowd=True), annotation(3, iscrowd='1'))
    assert objects.count == 1 and objects.left_out.total() == 2 and [entry['iscrowd'] for entry in found['annotations']] == [0, 1, 1]


# ---- what is refused


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(bbox=None), 'annotation 7 has no `bbox`'),
        (dict(bbox=[4, 5, None, 12]), r'annotation 7 has the bbox \[4, 5, None, 12\]; it needs four numbers'),
        (dict(bbox=[[4, 5, 20, 12]]), 'annotation 7 has the bbox .*four numbers'),
        (dict(bbox=[4, 5, True, 12]), 'annotation 7 has the bbox .*four numbers'),
        (dict(bbox=[4, 5, 20, 12, 1]), 'annotation 7 has the bbox .*four numbers'),
        (dict(bbox='4 5 20 12'), 'annotation 7 has the bbox .*four numbers'),
        (dict(bbox=dict(x=4, y=5, w=20, h=12)), 'annotation 7 has the bbox .*four numbers'),
        (dict(bbox=['4', '5', '20', '1,2']), 'annotation 7 has the bbox .*four numbers'),
        (dict(area='big'), "annotation 7 has the area 'big'; it needs a number"),
        (dict(area=[240]), 'annotation 7 has the area .*a number'),
        (dict(area=True), 'annotation 7 has the area True; it needs a number'),
        (dict(iscrowd=2), 'annotation 7 has the iscrowd 2; it needs 0 or 1'),
        (dict(iscrowd='no'), "annotation 7 has the iscrowd 'no'"),
        (dict(iscrowd=[0]), 'annotation 7 has the iscrowd'),
        (dict(image_id=None), 'annotation 7 has no `image_id`'),
        (dict(image_id=[0]), r'annotation 7 belongs to image \[0\], and there is no image'),
        (dict(image_id=False), 'annotation 7 belongs to image False'),
        (dict(image_id=0.5), 'annotation 7 belongs to image 0.5'),
        (dict(category_id='cat'), "annotation 7 has the category 'cat', and there is no category with this id"),
        (dict(category_id=0), 'annotation 7 has the category 0'),  # counted from 0, where the categories begin at 1
        (dict(id=None), 'entry 0 of `annotations` .* has no `id`'),
        (dict(id=[7]), r'entry 0 of `annotations` .* has the `id` \[7\]; it needs a whole number'),
        (dict(id=True), 'entry 0 of `annotations` .* has the `id` True'),
        (dict(id=float('nan')), 'entry 0 of `annotations` .* has the `id` nan'),
    ],
)
def test_annotations_that_are_refused(changes, message):
    with pytest.raises(DataError, match=f'a.json: {message}'):
        check(annotation(**{'id': 7, **changes}))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(annotations=[annotation(3), annotation(4), annotation(3)]), 'id 3 twice in `annotations`, in the entries 0 and 2'),
        (dict(annotations=[annotation(3), annotation('3')]), 'id 3 twice'),
        (dict(annotations=[None]), 'entry 0 of `annotations` .* is null; it has to be a dict'),
        (dict(annotations=[[1]]), 'of the type list; it has to be a dict'),
        (dict(annotations={'1': annotation()}), '`annotations` is of the type dict; it has to be a list'),
        (dict(annotations=None), '`annotations` is null'),
        (dict(images=[IMAGE, dict(IMAGE, file_name='1.png')]), 'id 0 twice in `images`'),
        (dict(images=['0.png']), 'entry 0 of `images` .* of the type str'),
        (dict(images=[dict(IMAGE, height='tall')]), "the image 0.png has the height 'tall'; it needs a number of pixels"),
        (dict(images=[dict(IMAGE, width=0)]), 'the image 0.png has the width 0'),
        (dict(images=[dict(IMAGE, width=-40)]), 'the image 0.png has the width -40'),
        (dict(images=[dict(IMAGE, width=40.5)]), 'the image 0.png has the width 40.5'),
        (dict(images=[dict(IMAGE, width=True)]), 'the image 0.png has the width True'),
        (dict(images=[dict(IMAGE, width=None)]), 'the image 0.png has no `width`'),
        (dict(images=[dict(IMAGE, file_name=5)]), 'the image 5 has the `file_name` 5; it needs a text'),
        (dict(images=[dict(IMAGE, file_name=['0.png'])]), 'needs a text'),
        (dict(categories=[dict(id=1, name='cat'), dict(id=1, name='dog')]), 'id 1 twice in `categories`'),
        (dict(categories=[dict(id=1, name='cat'), dict(id='d', name='dog')]), "the category 'dog' has the `id` 'd'"),
        (dict(categories=[dict(id=1, name=None), dict(id=2, name='dog')]), 'the category 1 has the `name` null'),
        (dict(categories=[dict(id=1), dict(id=2, name='dog')]), 'the category 1 has the `name` null'),
        (dict(categories=['cat', 'dog']), 'entry 0 of `categories`'),
    ],
)
def test_files_that_are_refused(changes, message):
    with pytest.raises(DataError, match=message):
        check(**{'annotations': [annotation()], **changes})


def test_a_single_class_without_its_comma():
    with pytest.raises(ConfigError, match=r"the text 'cat': .*classes=\('cat',\)"):
        check(annotation(), classes='cat')


# ---- the data set


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'images').mkdir()
    for i in range(3):
        Image.new('RGB', (WIDTH, HEIGHT), (40 * i, 90, 20)).save(tmp_path / f'images/{i}.png')
    return tmp_path


@pytest.fixture
def build(folder):
    """A data set over three images with an object each; `change(content)` edits the file before."""

    def make(change=lambda found: None, encoding='utf-8', settings=(), **loading):
        found = content(
            *(annotation(i, image_id=i) for i in range(3)),
            images=[dict(id=i, file_name=f'{i}.png', height=HEIGHT, width=WIDTH) for i in range(3)],
        )
        change(found)
        (folder / 'annotations.json').write_text(json.dumps(found), encoding=encoding)
        init_default_scope('mmdet')
        loading = dict(type='LoadAnnotations', with_bbox=True, with_mask=True) | loading
        image = dict(type='LoadImageFromFile') | dict(settings).pop('image', {})
        settings = {key: value for key, value in dict(settings).items() if key != 'image'}
        return DATASETS.build(
            dict(
                type='mmcae.CocoDataset',
                data_root=str(folder),
                ann_file='annotations.json',
                data_prefix=dict(img='images/'),
                metainfo=dict(classes=('cat', 'dog')),
                filter_cfg=dict(filter_empty_gt=True),
                serialize_data=False,
                pipeline=[image, loading, dict(type='PackDetInputs')],
                **settings,
            )
        )

    return make


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16', 'utf-32'])
def test_byte_order_marks(build, encoding):
    assert len(build(encoding=encoding)) == 3


@pytest.mark.parametrize('text', ['', '{', '<xml>', '[' * 100_000, '{"images": ' + '9' * 5000 + '}'])
def test_no_json(tmp_path, text):
    (tmp_path / 'annotations.json').write_text(text)
    with pytest.raises(DataError, match=r'annotations\.json is no COCO annotation file, because it is no JSON'):
        CheckedCOCO(tmp_path / 'annotations.json', 'annotations.json')


@pytest.mark.parametrize('mask', [rle(), rle(compressed=True), [rle()], [polygon()]])
def test_masks_of_the_data_set(build, mask):
    data = build(lambda found: found['annotations'][1].update(segmentation=mask))
    assert (data[1]['data_samples'].gt_instances.masks.masks == bitmap()).all()


def logged(caplog, build, *arguments, **settings):
    """What a function builds, and what it writes to the log about objects."""
    logger = MMLogger.get_instance('annotations')
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO):
        data = build(*arguments, **settings)
    logger.removeHandler(caplog.handler)
    return data, [record for record in caplog.records if 'objects:' in record.message]


def test_the_log_says_what_is_left_out(build, caplog):
    def change(found):
        found['annotations'] += [annotation(10, image_id=2, iscrowd=1), annotation(11, image_id=2, iscrowd=1)]
        found['annotations'][0]['bbox'] = [4, 5, 0, 12]

    data, lines = logged(caplog, build, change)
    assert len(data) == 2 and len(lines) == 1 and lines[0].levelname == 'WARNING'
    assert lines[0].message.endswith(
        'annotations.json: 2 images, objects: 2. Left out: 2 crowds (`iscrowd`), whose regions are ignored (annotation 10 ...); '
        '1 with an empty box (annotation 0 ...). Left out by filter_cfg: 0 images that are too small, 1 others without objects'
    )
    assert sum(len(data[i]['data_samples'].gt_instances) for i in range(2)) == 2


def test_nothing_is_left_out(build, caplog):
    _, lines = logged(caplog, build)
    assert [line.message.split('/')[-1] for line in lines] == ['annotations.json: 3 images, objects: 3'] and lines[0].levelname == 'INFO'


def test_bitmaps_where_polygons_are_needed(build):
    data = build(lambda found: found['annotations'][1].update(segmentation=rle()), poly2mask=False)
    assert len(data) == 2 and 'poly2mask=False' in data.objects.reasons()


def test_missing_images(build, folder):
    (folder / 'images/1.png').rename(folder / 'images/1.PNG')
    with pytest.raises(DataError, match=r"1 of the 3 images of .*annotations\.json are missing, the first is .*images/1\.png.*'1\.PNG'"):
        build()
    with pytest.raises(DataError, match=r'3 of the 3 images .* there is no folder .*elsewhere'):
        build(lambda found: [image.update(file_name=f'elsewhere/{image["file_name"]}') for image in found['images']])


def test_names_of_images(build, folder):
    """In folders below, with the backslashes of Windows, and absolute."""
    (folder / 'images/a').mkdir()
    for i in range(3):
        (folder / f'images/{i}.png').rename(folder / f'images/a/{i}.png')
    names = ('a/0.png', 'a\\1.png', str(folder / 'images/a/2.png'))
    data = build(lambda found: [image.update(file_name=name) for image, name in zip(found['images'], names, strict=True)])
    assert [data.get_data_info(i)['img_path'] for i in range(3)] == [str(folder / f'images/a/{i}.png') for i in range(3)]
    assert len(data[1]['data_samples'].gt_instances) == 1


def save(path, size, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new('RGB', size).save(path, exif=exif)


def test_exif_orientations(build, folder):
    """A rotation shows in the size; a mirror image does not, so that the pair is refused unless the pipeline says which is meant."""
    path = folder / 'images/1.png'
    save(path, (HEIGHT, WIDTH), 6)  # stored upright it is 40 wide, as the file says
    assert build()[1]['inputs'].shape == (3, HEIGHT, WIDTH)
    save(path, (WIDTH, HEIGHT), 6)
    with pytest.raises(DataError, match=r'1\.png is 30x40 pixels .* says 40x30.*EXIF'):
        build()
    stored = dict(image=dict(color_type='color_ignore_orientation'))
    assert build(settings=stored)[1]['inputs'].shape == (3, HEIGHT, WIDTH)
    for orientation in (2, 3, 4):
        save(path, (WIDTH, HEIGHT), orientation)
        with pytest.raises(DataError, match=rf'1\.png has the EXIF orientation {orientation}, .*color_ignore_orientation'):
            build()
        assert build(settings=stored)[1]['inputs'].shape == (3, HEIGHT, WIDTH)
    save(path, (WIDTH, HEIGHT), 1)
    assert len(build()) == 3


def test_no_object_at_all(build):
    """Refused where the training has nothing else; negative images beside others are asked for by filter_empty_gt=False."""
    with pytest.raises(DataError, match='none of its 3 images can be used'):
        build(lambda found: found.update(annotations=[]))
    with pytest.raises(DataError, match='none of its 3 annotations'):
        build(lambda found: [entry.update(iscrowd=1) for entry in found['annotations']])
    assert len(build(lambda found: found.update(annotations=[]), settings=dict(test_mode=True))) == 3
