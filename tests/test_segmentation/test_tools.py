"""The recipe through tools/train.py and tools/test.py as processes, on a few images in ADE20K's layout."""

import json

import numpy as np
import pytest
from PIL import Image

from .conftest import RECIPE, SHRUNK

# The recipe's, at two small scales.
AUGMENTED = [
    [dict(type='Resize', scale=scale, keep_ratio=True) for scale in ((400, 90), (400, 110))],
    [dict(type='RandomFlip', prob=0.0, direction='horizontal'), dict(type='RandomFlip', prob=1.0, direction='horizontal')],
    [dict(type='LoadAnnotations')],
    [dict(type='PackSegInputs')],
]


@pytest.fixture
def small_config(repository, scenes, pretrained, tmp_path):
    """Write a config as a user would: it inherits the recipe and changes the data set, its classes, the size and the length."""
    root = scenes()

    def write(**changes):
        data = dict(type='BaseSegDataset', data_root=str(root), reduce_zero_label=True, metainfo=dict(classes=tuple('abcde')))
        loader = dict(num_workers=0, persistent_workers=False, dataset=data)
        settings = SHRUNK | {
            'model.backbone.arch': dict(SHRUNK['model.backbone.arch'], _delete_=True),
            'model.backbone.init_cfg.checkpoint': str(pretrained),
            'train_cfg': dict(max_iters=4, val_interval=4),
            'train_dataloader': loader,
            'val_dataloader': loader,
            'test_dataloader': loader,
            'tta_pipeline': [dict(type='LoadImageFromFile'), dict(type='TestTimeAug', transforms=AUGMENTED)],
        }
        tree = {}
        for key, value in (settings | {key.replace('__', '.'): value for key, value in changes.items()}).items():
            *path, last = key.split('.')
            node = tree
            for part in path:
                node = node.setdefault(part, {})
            node[last] = value
        lines = [
            f'_base_ = {str(repository / RECIPE)!r}',
            'train_pipeline = _base_.train_pipeline',
            'train_pipeline[3].crop_size = (96, 96)',
            *(f'{key} = {value!r}' for key, value in tree.items()),
            "train_dataloader['dataset']['pipeline'] = train_pipeline",
        ]
        path = tmp_path / 'small.py'
        path.write_text('\n'.join(lines) + '\n')
        return path

    write.root = root
    return write


def test_train_and_test(small_config, run_tool, tmp_path):
    """Training from the checkpoint, then testing by sliding window with pictures and label maps, and whole images with augmentation."""
    config, work_dir = small_config(), tmp_path / 'work'
    code, output = run_tool('tools/train.py', config, '--work-dir', work_dir, timeout=300)
    assert code == 0, output
    assert 'resized (pos_embed)' in output and 'not in it and left as they are (relative_position_bias_table)' in output
    assert 'mIoU' in output
    checkpoint = work_dir / 'iter_4.pth'
    assert checkpoint.is_file()

    pictures, maps = tmp_path / 'pictures', tmp_path / 'maps'
    arguments = ('tools/test.py', config, checkpoint, '--work-dir', work_dir)
    code, output = run_tool(*arguments, '--show-dir', pictures, '--out', maps, timeout=300)
    assert code == 0, output
    metrics = json.loads((work_dir / 'metrics.json').read_text())
    assert len(list(pictures.rglob('*.png'))) == 8
    predicted, true = (
        np.stack([np.asarray(Image.open(folder / f'{i}.png')) for i in range(8)])
        for folder in (maps, small_config.root / 'annotations/validation')
    )
    assert predicted.shape == (8, 100, 120) and 1 <= predicted.min() and predicted.max() <= 5
    assert metrics['aAcc'] == pytest.approx(100 * (predicted == true).mean(), abs=0.01)
    assert metrics['mIoU'] == pytest.approx(100 * mean_iou(predicted, true), abs=0.01)

    whole = ('model.test_cfg.mode=whole', 'model.data_preprocessor.test_cfg.size=None', 'model.data_preprocessor.test_cfg.size_divisor=32')
    code, output = run_tool(*arguments, '--tta', '--cfg-options', *whole, timeout=300)
    assert code == 0, output
    assert 0 <= json.loads((work_dir / 'metrics.json').read_text())['mIoU'] <= 100


def mean_iou(predicted, true):
    """The mean over the classes that occur, by the definition."""
    occurring = np.unique((predicted, true))
    return np.mean([((predicted == label) & (true == label)).sum() / ((predicted == label) | (true == label)).sum() for label in occurring])


def refused(output):
    """The one line that a tool ends with when it refuses its input."""
    lines = [line for line in output.splitlines() if line.startswith('error:')]
    assert len(lines) == 1, output
    return lines[0]


def test_missing_label_map(small_config, run_tool, tmp_path):
    config = small_config()
    path = small_config.root / 'annotations/training/3.png'
    path.unlink()
    code, output = run_tool('tools/train.py', config, '--work-dir', tmp_path / 'work', timeout=300)
    assert code == 2 and f'1 of 8 label maps are missing, the first is {path}' in refused(output)


def test_label_ids_outside_the_classes(small_config, run_tool, tmp_path):
    config = small_config()
    for path in (small_config.root / 'annotations/training').glob('*.png'):
        Image.fromarray(np.asarray(Image.open(path)) + 7).save(path)
    code, output = run_tool('tools/train.py', config, '--work-dir', tmp_path / 'work', timeout=300)
    line = refused(output)
    assert code == 2 and 'annotations/training/0.png has the label ids [8, 9]' in line


def test_crop_of_no_multiple_of_the_patch_size(small_config, run_tool, tmp_path):
    config = small_config(model__backbone__img_size=(100, 96))
    code, output = run_tool('tools/train.py', config, '--work-dir', tmp_path / 'work', timeout=300)
    assert code == 2 and 'Images of 100x96 pixels (height x width) are not tiled by patches of 16x16' in refused(output)
