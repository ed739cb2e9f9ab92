"""Training and testing as people do it: through the tools, as processes, on a handful of images."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from mmcae.models import CAEViT

DIGITS = 'configs/digits/mask_rcnn_vit-digits.py'


@pytest.fixture
def options(coco):
    """The digits recipe on eight images with two kinds of objects, for a few iterations; and further changes of it."""

    def make(*changes, classes=('cat', 'dog'), steps=3, **data):
        root = coco(**data)
        pipeline = 'dataset.ann_file=annotations.json'
        found = [f'train_cfg.max_iters={steps}', f'train_cfg.val_interval={steps}', f'default_hooks.checkpoint.interval={steps}']
        found += [
            'param_scheduler.0.warmup=2',
            f'param_scheduler.0.end={steps}',
            'default_hooks.logger.interval=1',
            'log_processor.window_size=1',
        ]
        for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            found += [f'{loader}.batch_size=4', f'{loader}.num_workers=0', f'{loader}.dataset.data_root={root}/', f'{loader}.{pipeline}']
            found += [f'{loader}.dataset.data_prefix.img=images/', f'{loader}.dataset.metainfo.classes={list(classes)}'.replace(' ', '')]
        found += [f'{name}_evaluator.ann_file={root}/annotations.json' for name in ('val', 'test')]
        found += ['model.roi_head.bbox_head.num_classes=2', 'model.roi_head.mask_head.num_classes=2']
        return ['--work-dir', root / 'work', '--cfg-options', *found, *changes]

    return make


def losses(output, name):
    return [float(value) for value in re.findall(rf' {name}: ([\d.]+)', output)]


def test_train_then_test(run_tool, options, tmp_path):
    """Loss and checkpoint; then metrics, a picture of every image, and results in COCO's format, plain and with several views."""
    arguments = options('randomness.seed=0', steps=40)
    code, output = run_tool('tools/train.py', DIGITS, *arguments)
    assert code == 0, output
    for name in ('loss_rpn_cls', 'loss_cls', 'loss_mask'):  # loss_bbox grows at first: there is no object to learn from
        found = losses(output, name)
        assert len(found) == 40 and sum(found[-6:]) / 6 < 0.5 * found[0], (name, found)
    assert 'coco/segm_mAP' in output
    checkpoint = tmp_path / 'work/iter_40.pth'

    # The threshold lets a detector that has hardly learnt anything show its objects.
    low = ['model.test_cfg.rcnn.score_thr=0.01', 'default_hooks.visualization.score_thr=0.0', 'model.test_cfg.rcnn.max_per_img=5']
    extra = ['--show-dir', tmp_path / 'pictures', '--out', tmp_path / 'found', *arguments, *low]
    code, output = run_tool('tools/test.py', DIGITS, checkpoint, *extra)
    assert code == 0, output
    metrics = json.loads((tmp_path / 'work/metrics.json').read_text())
    assert {'coco/bbox_mAP', 'coco/bbox_mAP_50', 'coco/segm_mAP', 'coco/segm_mAP_50'} <= set(metrics)
    boxes, masks = (json.loads((tmp_path / f'found.{kind}.json').read_text()) for kind in ('bbox', 'segm'))
    assert {entry['image_id'] for entry in boxes} == set(range(8)) and len(masks) == len(boxes)
    assert {entry['category_id'] for entry in boxes} <= {1, 2}
    assert coco_mask.decode(masks[0]['segmentation']).shape == (64, 80)
    pictures = sorted(tmp_path.glob('pictures/**/*.png'))
    assert [picture.name for picture in pictures] == [f'{i}.png' for i in range(8)]
    plain = np.asarray(Image.open(tmp_path / 'images/0.png').convert('RGB'))
    drawn = np.asarray(Image.open(pictures[0]).convert('RGB'))
    # The picture shows the image and beside it the predictions; both are not the plain image.
    assert drawn.shape[0] == plain.shape[0] and not np.array_equal(drawn[:, -80:], plain)

    code, output = run_tool('tools/test.py', DIGITS, checkpoint, '--tta', '--out', tmp_path / 'views', *arguments, *low)
    assert code == 0, output
    masks = json.loads((tmp_path / 'views.segm.json').read_text())
    assert masks and coco_mask.decode(masks[0]['segmentation']).shape == (64, 80)


def refused(run_tool, tool, *arguments):
    """The one line by which a tool refuses its input."""
    code, output = run_tool(tool, *arguments)
    lines = [line for line in output.splitlines() if line.startswith('error: ')]
    assert code == 2 and len(lines) == 1 and 'Traceback' not in output, output
    return lines[0]


def test_half_matching_weights_stop_the_run(run_tool, options, tmp_path):
    encoder = CAEViT(dict(embed_dims=96, num_layers=2, num_heads=4), 32, 8)
    torch.save({f'backbone.{name}': value for name, value in encoder.state_dict().items()}, tmp_path / 'half.pth')
    arguments = options(f'model.backbone.init_cfg.checkpoint={tmp_path}/half.pth')
    message = refused(run_tool, 'tools/train.py', DIGITS, *arguments)
    assert 'half.pth' in message and 'missing: blocks.2.' in message
    assert not list(tmp_path.glob('work/*.pth'))


def test_number_of_classes(run_tool, options):
    message = refused(run_tool, 'tools/train.py', DIGITS, *options('model.roi_head.mask_head.num_classes=3'))
    assert 'roi_head.mask_head was made for 3' in message and 'model.roi_head.mask_head.num_classes=2' in message


def test_missing_annotation_file(run_tool, options):
    message = refused(run_tool, 'tools/train.py', DIGITS, *options('train_dataloader.dataset.ann_file=absent.json'))
    assert 'absent.json' in message


def test_damaged_image_in_a_worker(run_tool, options, tmp_path):
    """One line, although torch hands it on with the worker's stack trace."""
    arguments = options('train_dataloader.num_workers=1')
    for image in tmp_path.glob('images/*.png'):
        image.write_bytes(b'no image')
    message = refused(run_tool, 'tools/train.py', DIGITS, *arguments)
    assert re.search(r'images/\d\.png cannot be read as an image \(PIL knows no such format\)', message) and len(message) < 600
