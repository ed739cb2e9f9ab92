"""ViTDet's recipe as people use it: trained and tested through the tools, as processes, on eight images at a small size."""

import json

import pytest
from mmengine.registry import init_default_scope
from PIL import Image
from pycocotools import mask as coco_mask

from mmcae.registry import DATASETS
from mmcae.utils.configs.loading import load_config

from .conftest import CLASSES, SHRUNK, SHRUNK_BOX_HEAD, SHRUNK_VITDET, VITDET


@pytest.fixture
def small_config(repository, coco, pretrained, tmp_path):
    """The recipe on data of one's own, in a file that inherits it, with a small encoder and images of 96x96 instead of 1024x1024."""

    def write(**data):
        root = coco(**data)
        settings = SHRUNK | SHRUNK_VITDET
        settings |= {'model.backbone.arch': dict(settings['model.backbone.arch'], _delete_=True)}
        settings |= {'model.backbone.init_cfg.checkpoint': str(pretrained), 'model.roi_head.bbox_head': SHRUNK_BOX_HEAD}
        source = dict(data_root=f'{root}/', metainfo=dict(classes=CLASSES), ann_file='annotations.json', data_prefix=dict(img='images/'))
        for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            settings[loader] = dict(num_workers=0, persistent_workers=False, dataset=source)
        settings |= {f'{name}_evaluator': dict(ann_file=f'{root}/annotations.json') for name in ('val', 'test')}
        settings |= {'train_cfg': dict(max_epochs=1, val_interval=1), 'train_dataloader.batch_size': 4}
        settings |= {'default_hooks.logger.interval': 1, 'log_processor.window_size': 1}
        tree = {}
        for key, value in settings.items():
            *path, last = key.split('.')
            node = tree
            for part in path:
                node = node.setdefault(part, {})
            node[last] = value
        lines = [
            f'_base_ = {str(repository / VITDET)!r}',
            'train_pipeline, test_pipeline, tta_pipeline = _base_.train_pipeline, _base_.test_pipeline, _base_.tta_pipeline',
            'train_pipeline[3].scale = train_pipeline[4].crop_size = test_pipeline[1].scale = (96, 96)',
            'tta_pipeline[1].transforms[0][0].scale = (96, 96)',
            *(f'{key} = {value!r}' for key, value in tree.items()),
            "train_dataloader['dataset']['pipeline'] = train_pipeline",
            "val_dataloader['dataset']['pipeline'] = test_dataloader['dataset']['pipeline'] = test_pipeline",
        ]
        path = tmp_path / 'small.py'
        path.write_text('\n'.join(lines) + '\n')
        return path

    return write


def test_train_then_test(small_config, run_tool, tmp_path):
    """Two steps from the checkpoint; then metrics, pictures and results in COCO's format, and the image with its mirror image."""
    config, work_dir = small_config(), tmp_path / 'work'
    code, output = run_tool('tools/train.py', config, '--work-dir', work_dir)
    assert code == 0, output
    assert 'resized (pos_embed)' in output and output.count(' loss: ') == 2 and 'coco/segm_mAP' in output
    checkpoint = work_dir / 'epoch_1.pth'

    low = ['--cfg-options', 'model.test_cfg.rcnn.score_thr=0.0', 'default_hooks.visualization.score_thr=0.0']
    low += ['model.test_cfg.rcnn.max_per_img=5']
    arguments = ('tools/test.py', config, checkpoint, '--work-dir', work_dir)
    code, output = run_tool(*arguments, '--show-dir', tmp_path / 'pictures', '--out', tmp_path / 'found', *low)
    assert code == 0, output
    metrics = json.loads((work_dir / 'metrics.json').read_text())
    assert {'coco/bbox_mAP', 'coco/segm_mAP'} <= set(metrics)
    boxes, masks = (json.loads((tmp_path / f'found.{kind}.json').read_text()) for kind in ('bbox', 'segm'))
    assert len(masks) == len(boxes) > 0
    # Padded to a square for the model, and back in the image, which is 80 wide and 64 high.
    assert all(0 <= x and 0 <= y and x + w <= 80.01 and y + h <= 64.01 for x, y, w, h in (entry['bbox'] for entry in boxes))
    assert coco_mask.decode(masks[0]['segmentation']).shape == (64, 80)
    pictures = sorted(tmp_path.glob('pictures/**/*.png'))
    assert len(pictures) == 8 and Image.open(pictures[0]).height == 64

    code, output = run_tool(*arguments, '--tta', '--out', tmp_path / 'views', *low)
    assert code == 0, output
    views = json.loads((tmp_path / 'views.segm.json').read_text())
    assert views and coco_mask.decode(views[0]['segmentation']).shape == (64, 80)


def test_large_scale_jittering(small_config, coco_object):
    """Images come out at 0.1 to 2 times the size that fits, cut to it; boxes are those of the cut masks, none without an area; images
    that lose all their objects stay."""
    corners = [coco_object(2 * i + j, i, box) for i in range(8) for j, box in enumerate([(1, 1, 6, 4), (70, 55, 8, 7)], 1)]
    init_default_scope('mmdet')
    data = DATASETS.build(load_config(small_config(annotations=corners)).train_dataloader.dataset)
    sizes, counts = [], []
    for i in range(80):
        sample = data[i % 8]
        height, width = sample['inputs'].shape[1:]
        found = sample['data_samples'].gt_instances
        assert max(height, width) <= 96 and sample['data_samples'].img_shape == (height, width)
        assert found.masks.masks.shape == (len(found), height, width)
        for box, mask in zip(found.bboxes.tensor.tolist(), found.masks.masks, strict=True):
            rows, columns = mask.nonzero()
            assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        sizes.append(max(height, width))
        counts.append(len(found))
    assert min(sizes) < 30 and max(sizes) == 96 and set(counts) == {0, 1, 2}
