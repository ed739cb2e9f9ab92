"""The segmentation probes by config, against the probes on features computed by hand."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mmcae.evaluation.block_features import patch_features
from mmcae.evaluation.metrics import mean_iou
from mmcae.evaluation.segmentation import DenseBatch, PatchBank, knn_segmentation, patch_labels
from mmcae.evaluation.segmentation_loop import to_patches, train_and_val
from mmcae.models import CAEViT

MEAN, STD = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1), torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)


def by_hand(encoder, root, split):
    """All images of a split in one batch, with the features of the last block."""
    paths = sorted((root / f'scenes64/{split}').iterdir())
    images = torch.stack([torch.from_numpy(np.array(Image.open(path).convert('RGB'))).permute(2, 0, 1).float() for path in paths])
    maps = [torch.from_numpy(np.array(Image.open(root / f'scenes64_labels/{split}' / path.name)).astype(np.int64)) for path in paths]
    return DenseBatch(patch_features(encoder, (images - MEAN) / STD), (8, 8), maps)


def test_knn_segmentation_of_digit_scenes(fork_tool, digit_scenes, tmp_path):
    encoder = CAEViT(dict(embed_dims=96, num_layers=4, num_heads=4), img_size=32, patch_size=8).eval()
    torch.save(dict(state_dict=encoder.state_dict()), tmp_path / 'a.pth')
    options = ('test_split=val', 'test_cfg.settings.k=[5]')
    command = ('tools/test.py', 'digits/knn_segmentation_vit-digits.py', tmp_path / 'a.pth', '--work-dir', tmp_path / 'out')
    code, output = fork_tool(*command, '--cfg-options', *options, cwd=digit_scenes.parents[1])
    assert code == 0, output
    metrics = json.loads((tmp_path / 'out/metrics.json').read_text())
    train, val = (by_hand(encoder, digit_scenes, split) for split in ('train', 'val'))
    labels = torch.cat([patch_labels(one, (8, 8), (8, 8), 11) for one in train.maps])
    areas, _ = knn_segmentation(PatchBank(train.features.flatten(0, 1), labels, 11), None, lambda: [val], [5])
    assert metrics['mIoU'] == pytest.approx(100 * mean_iou(areas)(np.ones(len(areas))), abs=0.5)  # features in half precision


@pytest.fixture
def ade20k(tmp_path):
    """Images of two halves, sky and floor, in the layout of ADE20K and of sizes of their own; returns the root and an encoder's file."""
    random = np.random.default_rng(0)
    for split, count in (('training', 10), ('validation', 3)):
        for number in range(count):
            height, width = random.integers(30, 60, 2)
            truth = np.full((height, width), 3, np.uint8)  # sky is class 2, and floor class 3
            truth[height // 2 :] = 4
            pixels = np.where(truth[..., None] == 3, (60, 120, 220), (120, 90, 50)) + random.normal(0, 9, (height, width, 3))
            truth[:, :2] = 0  # other
            for folder, array, suffix in (('images', np.clip(pixels, 0, 255).astype(np.uint8), 'jpg'), ('annotations', truth, 'png')):
                path = tmp_path / 'ade' / folder / split / f'ADE_{number:08d}.{suffix}'
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    encoder = CAEViT(dict(embed_dims=16, num_layers=2, num_heads=2), img_size=32, patch_size=8, layer_scale_init_value=0.1)
    torch.save(dict(state_dict=encoder.state_dict()), tmp_path / 'encoder.pth')
    return tmp_path / 'ade', tmp_path / 'encoder.pth'


SMALL = (
    'model.backbone.arch={"embed_dims": 16, "num_layers": 2, "num_heads": 2}',
    'model.backbone.img_size=32',
    'model.backbone.patch_size=8',
    'pipeline.1.scale=(32,32)',
    'batch_size=2',
    'num_workers=0',
)


def test_linear_segmentation_of_a_set_in_the_layout_of_ade20k(fork_tool, ade20k, tmp_path):
    root, encoder = ade20k
    options = (*SMALL, f'data_root={root}', 'patches=90', 'test_cfg.settings.min_steps=100')
    config = 'segmentation_probe/linear_vit-base-p16_cae_ade20k-512x512.py'
    code, output = fork_tool('tools/test.py', config, encoder, '--work-dir', tmp_path / 'out', '--cfg-options', *options)
    assert code == 0, output
    assert 'Images: 8 to learn from, 2 to choose on, 3 to segment' in output
    assert 'Learning from 90 of 128 labelled patches' in output
    assert 'patches of the last' in output
    metrics = json.loads((tmp_path / 'out/metrics.json').read_text())
    assert metrics['mIoU'] > 80 and metrics['aAcc'] > 90
    for path in sorted((root / 'annotations/validation').iterdir())[:1]:
        Image.fromarray(np.full(np.array(Image.open(path)).shape, 151, np.uint8)).save(path)
    code, output = fork_tool('tools/test.py', config, encoder, '--work-dir', tmp_path / 'out', '--cfg-options', *options)
    assert code == 2 and 'ADE_00000000.png has the number 150; classes are 0 to 149' in output.splitlines()[-1]
    code, output = fork_tool('tools/test.py', config, encoder, '--cfg-options', *options, 'pipeline.1.keep_ratio=True')
    assert code == 2 and 'one size' in output.splitlines()[-1] and 'batch_size=1' in output.splitlines()[-1]
    code, output = fork_tool('tools/test.py', config, encoder, '--cfg-options', *options, 'test_cfg.settings.k=[1]')
    assert code == 2 and "no setting 'k'; it has rates" in output.splitlines()[-1]


def test_held_out_images_are_not_learnt_from(ade20k, repository):
    from mmengine.registry import init_default_scope

    from mmcae.utils.configs.loading import load_config

    root, _ = ade20k
    cfg = load_config(repository / 'configs/segmentation_probe/knn_vit-base-p16_cae_ade20k-512x512.py', [f'data_root={root}', *SMALL])
    init_default_scope('mmseg')
    assert 'val_dataloader' not in cfg.test_cfg
    learnt, chosen_on = train_and_val(cfg.test_cfg.bank_dataloader, None, seed=1)
    rows = [set(loader.dataset.indices) for loader in (learnt, chosen_on)]
    assert not rows[0] & rows[1] and rows[0] | rows[1] == set(range(10)) and len(rows[1]) == 2


def test_images_are_squeezed_to_whole_patches():
    images = torch.rand(2, 3, 64, 70)
    assert to_patches(images, (14, 14)).shape == (2, 3, 70, 70)
    assert to_patches(images, (32, 35)) is images
    assert torch.equal(to_patches(images, (14, 14)), F.interpolate(images, (70, 70), mode='bilinear', antialias=True))
