"""The segmentation probes by config, against the probes on features computed by hand."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mmcae.evaluation.block_features import patch_features
from mmcae.evaluation.metrics import mean_iou
from mmcae.evaluation.segmentation import DenseSplit, PatchBank, knn_segmentation, patch_labels
from mmcae.evaluation.segmentation_loop import to_patches
from mmcae.models import CAEViT

MEAN, STD = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1), torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)


def by_hand(encoder, root, split):
    paths = sorted((root / f'scenes64/{split}').iterdir())
    images = torch.stack([torch.from_numpy(np.array(Image.open(path).convert('RGB'))).permute(2, 0, 1).float() for path in paths])
    maps = [torch.from_numpy(np.array(Image.open(root / f'scenes64_labels/{split}' / path.name)).astype(np.int64)) for path in paths]
    return DenseSplit(patch_features(encoder, (images - MEAN) / STD), (8, 8), lambda: maps)


def test_knn_segmentation_of_digit_scenes(fork_tool, digit_scenes, tmp_path):
    encoder = CAEViT(dict(embed_dims=96, num_layers=4, num_heads=4), img_size=32, patch_size=8).eval()
    torch.save(dict(state_dict=encoder.state_dict()), tmp_path / 'a.pth')
    options = ('test_split=val', 'test_cfg.settings.k=[5]')
    command = ('tools/test.py', 'digits/knn_segmentation_vit-digits.py', tmp_path / 'a.pth', '--work-dir', tmp_path / 'out')
    code, output = fork_tool(*command, '--cfg-options', *options, cwd=digit_scenes.parents[1])
    assert code == 0, output
    metrics = json.loads((tmp_path / 'out/metrics.json').read_text())
    train, val = (by_hand(encoder, digit_scenes, split) for split in ('train', 'val'))
    labels = torch.cat([patch_labels(one, (8, 8), (8, 8), 11) for one in train.maps()])
    areas, _ = knn_segmentation(PatchBank(train.features.flatten(0, 1), labels, 11), val, val, [5])
    assert metrics['mIoU'] == pytest.approx(100 * mean_iou(areas)(np.ones(len(areas))), abs=0.5)  # features in half precision
    assert 0 < metrics['mIoU'] < metrics['aAcc'] < 100


def test_images_are_squeezed_to_whole_patches():
    images = torch.rand(2, 3, 64, 70)
    assert to_patches(images, (14, 14)).shape == (2, 3, 70, 70)
    assert to_patches(images, (32, 35)) is images
    assert torch.equal(to_patches(images, (14, 14)), F.interpolate(images, (70, 70), mode='bilinear', antialias=True))
