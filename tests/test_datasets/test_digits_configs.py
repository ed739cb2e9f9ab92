"""The base configs of the data, built as the runner builds them: shapes, labels, splits, and metrics that a perfect answer satisfies."""

import random
from itertools import islice

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, METRICS, MODELS, init_default_scope
from mmengine.runner import Runner
from PIL import Image


@pytest.fixture
def load(repository, digit_scenes, monkeypatch):
    """Read a base config in a folder where data/digits is, under a default scope."""

    def read(name, scope):
        monkeypatch.chdir(digit_scenes.parents[1])
        init_default_scope(scope)
        return Config.fromfile(repository / f'configs/_base_/datasets/{name}.py')

    return read


def loader_of(cfg, split, **changes):
    return Runner.build_dataloader({**cfg[f'{split}_dataloader'], 'num_workers': 0, 'persistent_workers': False, **changes}, seed=0)


def test_pretraining_batches_come_in_three_sizes(load):
    cfg = load('digits_pretrain_scenes', 'mmpretrain')
    random.seed(0)
    cfg.train_dataloader.batch_sampler.batch_sizes = [16, 8, 5]
    preprocessor = MODELS.build(cfg.data_preprocessor)
    seen = set()
    for batch in islice(loader_of(cfg, 'train'), 20):  # the sampler has no end
        assert all(view.dtype == torch.uint8 for view in batch['inputs'])
        masks = torch.stack([sample.mask for sample in batch['data_samples']])
        side = batch['inputs'][0].shape[-1]
        count = {32: 16, 64: 8, 96: 5}[side]
        assert [tuple(view.shape) for view in batch['inputs']] == [(count, 3, side, side)] * 2
        assert masks.dtype == torch.bool and masks.shape == (count, side // 8, side // 8)
        assert (masks.sum((1, 2)) == int(cfg.mask_ratio * (side // 8) ** 2)).all()
        model_view, target_view = preprocessor(batch)['inputs']
        assert 0 <= target_view.min() and target_view.max() <= 1 and target_view.max() > 0.6
        mean = (batch['inputs'][0].float() - preprocessor.mean) / preprocessor.std
        torch.testing.assert_close(model_view, mean)
        seen.add(side)
    assert seen == {32, 64, 96}


def test_pretraining_on_tiles_alone(load):
    cfg = load('digits_pretrain', 'mmpretrain')
    batch = next(iter(loader_of(cfg, 'train', batch_size=10)))
    assert [tuple(view.shape) for view in batch['inputs']] == [(10, 3, 32, 32)] * 2
    assert torch.stack([sample.mask for sample in batch['data_samples']]).sum() == 10 * int(cfg.mask_ratio * 16)


def test_second_stage_sees_scenes(repository, digit_scenes, monkeypatch):
    monkeypatch.chdir(digit_scenes.parents[1])
    init_default_scope('mmpretrain')
    cfg = Config.fromfile(repository / 'configs/digits/cae_scenes_vit-digits.py')
    batch = next(iter(loader_of(cfg, 'train', batch_size=5)))
    assert [tuple(view.shape) for view in batch['inputs']] == [(5, 3, 96, 96)] * 2
    assert torch.stack([sample.mask for sample in batch['data_samples']]).sum() == 5 * int(cfg.mask_ratio * 144)
    assert cfg.param_scheduler[0].end == cfg.train_cfg.max_iters == cfg.default_hooks.checkpoint.interval == 400


def test_imagenet_pipeline_is_the_papers(repository, tmp_path):
    """On a stand-in in ImageNet's layout: 224 and 112, one box, 98 of 196 masked in blocks, both normalisations."""
    init_default_scope('mmpretrain')
    rng = np.random.default_rng(0)
    for name in ('n01440764', 'n01443537'):
        (tmp_path / 'train' / name).mkdir(parents=True)
        for i in range(3):
            pixels = np.asarray(Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((400, 300)))
            Image.fromarray(pixels).save(tmp_path / 'train' / name / f'{i}.JPEG')
    cfg = Config.fromfile(repository / 'configs/_base_/datasets/imagenet_cae.py')
    assert cfg.train_dataloader.batch_size == 64
    dataset = {**cfg.train_dataloader.dataset, 'data_root': str(tmp_path)}
    random.seed(0)
    batch = next(iter(loader_of(cfg, 'train', batch_size=6, dataset=dataset, pin_memory=False)))
    assert [tuple(view.shape) for view in batch['inputs']] == [(6, 3, 224, 224), (6, 3, 112, 112)]
    masks = torch.stack([sample.mask for sample in batch['data_samples']])
    assert masks.shape == (6, 14, 14) and (masks.sum((1, 2)) == 98).all()
    assert len({sample.flip for sample in batch['data_samples']}) == 2
    model_view, target_view = MODELS.build(cfg.data_preprocessor)(batch)['inputs']
    torch.testing.assert_close(target_view, 0.8 * batch['inputs'][1] / 255 + 0.1)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(model_view, (batch['inputs'][0] / 255 - mean) / std)
    # Both views show the same box: the larger one, averaged over 2x2 pixels, is nearly the smaller one.
    pooled = torch.nn.functional.avg_pool2d(batch['inputs'][0].float(), 2)
    assert (pooled - batch['inputs'][1]).abs().mean() < 2


def test_classification_gives_rgb_and_all_ten_classes(load):
    cfg = load('digits_classification', 'mmpretrain')
    paths = {}
    for split in ('train', 'val', 'test'):
        loader = loader_of(cfg, split, batch_size=1000)
        batch = next(iter(loader))
        labels = torch.cat([sample.gt_label for sample in batch['data_samples']])
        assert set(labels.tolist()) == set(range(10)) and batch['inputs'].shape[1:] == (3, 32, 32)
        paths[split] = {sample.img_path for sample in batch['data_samples']}
        assert all(f'/{split}/{label}/' in sample.img_path for label, sample in zip(labels.tolist(), batch['data_samples'], strict=True))
    assert not paths['train'] & paths['val'] and not paths['val'] & paths['test']
    image = MODELS.build({'type': 'ClsDataPreprocessor', **cfg.data_preprocessor})(batch)['inputs'][0]
    expected = np.asarray(Image.open(batch['data_samples'][0].img_path)).transpose(2, 0, 1) / 255
    mean, std = (np.array(v).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    np.testing.assert_allclose(image, (expected - mean) / std, atol=1e-4)


@pytest.mark.parametrize('labels, count', [(0.25, 30), (20, 20), (1.0, 120)])
def test_number_of_labels_is_one_setting(load, labels, count):
    cfg = load('digits_classification', 'mmpretrain')
    cfg.merge_from_dict({'train_dataloader.dataset.labels': labels})
    assert len(loader_of(cfg, 'train').dataset) == count


def as_dict(sample):
    """A data sample with its ground truth as the prediction, as metrics of mmdet get it."""
    truth = sample.gt_instances
    boxes = truth.bboxes.tensor if hasattr(truth.bboxes, 'tensor') else truth.bboxes
    masks = torch.from_numpy(truth.masks.to_ndarray()).bool()
    predicted = dict(bboxes=boxes, labels=truth.labels, scores=torch.ones(len(boxes)), masks=masks)
    return dict(pred_instances=predicted, img_id=sample.img_id, ori_shape=sample.ori_shape)


@pytest.mark.parametrize('split', ['val', 'test'])
def test_coco_annotations_score_themselves_perfectly(load, split):
    cfg = load('digits_coco', 'mmdet')
    loader = loader_of(cfg, split)
    metric = METRICS.build(cfg[f'{split}_evaluator'])
    metric.dataset_meta = loader.dataset.metainfo
    for batch in loader:
        assert all(image.shape == (3, 96, 96) for image in batch['inputs'])
        metric.process(batch, [as_dict(sample) for sample in batch['data_samples']])
    scores = metric.evaluate(len(loader.dataset))
    assert scores['coco/bbox_mAP'] == scores['coco/segm_mAP'] == 1


def test_coco_training_batch_has_boxes_masks_and_digits_as_labels(load):
    cfg = load('digits_coco', 'mmdet')
    loader = loader_of(cfg, 'train')
    assert loader.dataset.metainfo['classes'] == tuple('0123456789') and len(loader.dataset) == 40
    batch = next(iter(loader))
    assert len(batch['inputs']) == 16
    for image, sample in zip(batch['inputs'], batch['data_samples'], strict=True):
        label_map = np.asarray(Image.open(sample.img_path.replace('scenes96', 'scenes96_labels')))
        assert image.shape == (3, 96, 96) and 1 <= len(sample.gt_instances) <= 4
        for label, mask in zip(sample.gt_instances.labels, sample.gt_instances.masks.to_ndarray(), strict=True):
            assert (label_map[mask == 1] == label.item() + 1).all()


@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_label_maps_score_themselves_perfectly(load, split):
    cfg = load('digits_segmentation', 'mmseg')
    dataset = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
    metric = METRICS.build(cfg.test_evaluator)
    metric.dataset_meta = dataset.metainfo
    assert len(dataset.metainfo['classes']) == 11 and not dataset.metainfo['reduce_zero_label']
    present = set()
    for item in (dataset[i] for i in range(len(dataset))):
        truth = item['data_samples'].gt_sem_seg.data
        assert item['inputs'].shape == (3, 64, 64) and truth.shape == (1, 64, 64)
        present |= set(truth.unique().tolist())
        metric.process({}, [dict(pred_sem_seg=dict(data=truth), gt_sem_seg=dict(data=truth))])
    assert 0 in present and present <= set(range(11)) and len(present) >= 8
    assert metric.evaluate(len(dataset))['aAcc'] == 100
