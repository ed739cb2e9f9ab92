"""The config for Pascal VOC 2012 on images and label maps in its layout."""

import numpy as np
import pytest
from mmengine.registry import init_default_scope
from PIL import Image

from mmcae.registry import DATASETS
from mmcae.utils.configs.loading import load_config

CONFIG = 'configs/upernet/upernet_vit-base-p16_cae-1600e_8xb2-amp-160k_voc12-512x512.py'


@pytest.fixture
def voc(tmp_path):
    """Three images, of which two are in the split of the training and one in that of the validation; objects have an unlabelled border."""
    for folder in ('JPEGImages', 'SegmentationClass', 'ImageSets/Segmentation'):
        (tmp_path / folder).mkdir(parents=True)
    for name in ('2007_000032', '2007_000039', '2007_000063'):
        Image.new('RGB', (60, 50), (90, 60, 30)).save(tmp_path / f'JPEGImages/{name}.jpg')
        labels = np.zeros((50, 60), np.uint8)
        labels[9:31, 9:31], labels[10:30, 10:30] = 255, 20
        picture = Image.fromarray(labels)
        picture.putpalette([value for i in range(256) for value in (i, 255 - i, i // 2)])  # as VOC's have
        picture.save(tmp_path / f'SegmentationClass/{name}.png')
    (tmp_path / 'ImageSets/Segmentation/train.txt').write_text('2007_000032\n2007_000063\n')
    (tmp_path / 'ImageSets/Segmentation/val.txt').write_text('2007_000039\n')
    return tmp_path


@pytest.mark.parametrize(('loader', 'names'), [('train_dataloader', ['2007_000032', '2007_000063']), ('val_dataloader', ['2007_000039'])])
def test_images_and_labels_are_found(repository, voc, loader, names):
    options = [f'{split}_dataloader.dataset.data_root={voc}' for split in ('train', 'val', 'test')]
    cfg = load_config(repository / CONFIG, options)
    init_default_scope('mmseg')
    dataset = DATASETS.build(cfg[loader].dataset)
    assert [dataset.get_data_info(i)['seg_map_path'] for i in range(len(dataset))] == [
        str(voc / f'SegmentationClass/{name}.png') for name in names
    ]
    assert len(dataset.metainfo['classes']) == 21 == cfg.model.decode_head.num_classes
    labels = dataset[0]['data_samples'].gt_sem_seg.data
    # The numbers in the file, not the colours of its palette; the background is a class, and the border stays ignored.
    assert set(labels.unique().tolist()) <= {0, 20, 255} and {0, 20} & set(labels.unique().tolist())
    if loader == 'val_dataloader':
        assert labels.shape == (1, 50, 60) and (labels == 20).sum() == 400 and (labels == 255).sum() == 84
