"""Fashion-MNIST beside the digits: the same recipes on other data, both with val to choose by and test to publish. Each of them trains."""

import copy

import numpy as np
import pytest
from mmengine.registry import DATASETS, init_default_scope

from mmcae.engine.launch import build_runner
from mmcae.utils.configs.loading import load_config

NEIGHBOURS = ('mae_vit', 'beit_vit', 'simmim_vit', 'data2vec_vit', 'ijepa_vit')
PRETRAINING = ('tokenizer', 'cae_vit', 'cae_pixels_vit', 'cae_teacher_vit', 'cae_v2_vit', *NEIGHBOURS)
LABELLED = ('linear_vit', 'attentive_vit', 'finetune_vit')
DENSE = ('mask_rcnn_vit', 'upernet_vit')
TESTED = ('knn_vit', 'knn_segmentation_vit', 'linear_segmentation_vit')  # nothing is trained before
DATA = ('digits', 'fashion')
# What a config of Fashion-MNIST has otherwise than that of the digits, besides variables: the data, and what is pretrained on them.
MAY_DIFFER = ('data_root', 'metainfo.classes', 'checkpoint', 'ann_file', 'anchor_generator.ratios')


@pytest.fixture(scope='module')
def workplace(tmp_path_factory, fork_tool):
    """A folder in which data/fashion and data/fashion_scenes are made by the tools, of 30 pictures of each class."""
    folder, rng = tmp_path_factory.mktemp('fashion'), np.random.default_rng(0)
    (folder / 'idx').mkdir()
    for part, count in (('train', 24), ('t10k', 6)):
        labels = np.repeat(np.arange(10, dtype=np.uint8), count)
        pictures = np.zeros((len(labels), 28, 28), np.uint8)
        for picture, label in zip(pictures, labels, strict=True):  # blocks of another height and width for each class
            picture[14 - label : 15 + label, label + 2 : 26 - label] = rng.integers(60, 256, (2 * label + 1, 24 - 2 * label))
        for kind, array in (('images-idx3', pictures), ('labels-idx1', labels)):
            header = bytes([0, 0, 8, array.ndim]) + b''.join(length.to_bytes(4, 'big') for length in array.shape)
            (folder / f'idx/{part}-{kind}-ubyte').write_bytes(header + array.tobytes())
    tools = 'tools/dataset_converters'
    code, output = fork_tool(f'{tools}/fashion_mnist.py', '--source', 'idx', '--unpublished', cwd=folder)
    assert code == 0, output
    scenes = ('data/fashion/classification', '--out', 'data/fashion_scenes', '--scale', '0.02', '--workers', '1')
    code, output = fork_tool(f'{tools}/make_scenes.py', *scenes, cwd=folder)
    assert code == 0, output
    return folder


@pytest.fixture
def load(repository):
    """The config of a recipe for one of the data sets: `load('linear_vit', 'fashion', *options)`."""

    def read(recipe, data, *options):
        name = f'{recipe}_{data}' if recipe == 'tokenizer' else f'{recipe}-{data}'
        return load_config(repository / f'configs/{data}/{name}.py', options)

    return read


def flat(node, prefix=''):
    """All values of a config by dotted key."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else None
    if pairs is None or prefix.endswith(('.classes', '.ratios')):
        return {prefix[1:]: node}
    return {key: value for name, child in pairs for key, value in flat(child, f'{prefix}.{name}').items()}


def test_every_recipe_is_listed(repository):
    names = {path.stem for path in (repository / 'configs/fashion').glob('*.py')}
    assert names == {'tokenizer_fashion', *(f'{recipe}-fashion' for recipe in (*PRETRAINING[1:], *LABELLED, *DENSE, *TESTED))}


@pytest.fixture
def settings(load):
    """Everything in a config that is built, without variables, by dotted key."""

    def read(recipe, data, *options):
        names = 'model data_preprocessor optim_wrapper param_scheduler randomness'.split()
        names += [f'{split}_{part}' for split in ('train', 'val', 'test') for part in ('dataloader', 'evaluator', 'cfg')]
        parts = tuple(f'{name}.' for name in names)
        return {key: value for key, value in flat(load(recipe, data, *options).to_dict()).items() if key.startswith(parts)}

    return read


@pytest.mark.parametrize('recipe', [*PRETRAINING, *LABELLED, *DENSE, *TESTED])
def test_the_data_alone_differ(settings, recipe):
    digits, fashion = (settings(recipe, data) for data in DATA)
    differing = {key for key in digits | fashion if digits.get(key) != fashion.get(key)}
    assert differing and all(key.endswith(MAY_DIFFER) for key in differing), differing
    assert not [value for value in fashion.values() if 'digits' in str(value)]


@pytest.mark.parametrize('data', DATA)
@pytest.mark.parametrize('recipe', [*LABELLED, *DENSE, *TESTED])
def test_one_variable_has_val_judged_instead_of_test(settings, recipe, data):
    test, val = settings(recipe, data), settings(recipe, data, 'test_split=val')
    changed = {key for key in test if test[key] != val[key]}
    assert changed and all(key.startswith(('test_dataloader.', 'test_evaluator.')) for key in changed)
    for key in changed:
        assert test[key].replace('test', 'val') == val[key]
    places = {key: str(value) for key, value in val.items() if 'data_prefix' in key or 'ann_file' in key}
    assert not [key for key, value in places.items() if 'test' in value]
    assert not [key for key, value in places.items() if key.startswith('train_') and 'val' in value]


def shorten(cfg, folder, iterations=2):
    """Few iterations on few images, in this process."""
    cfg.train_cfg.max_iters = iterations
    if 'val_interval' in cfg.train_cfg:
        cfg.train_cfg.val_interval = iterations
    cfg.default_hooks.checkpoint.interval = iterations
    cfg.param_scheduler[0].update(warmup=0, end=iterations)
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if cfg.get(name):
            cfg[name].num_workers = 0
            cfg[name].batch_size = min(cfg[name].batch_size, 8)
            cfg[name].pop('persistent_workers', None)
    cfg.custom_hooks = [hook for hook in cfg.get('custom_hooks', []) if hook['type'] != 'mmcae.DrawReconstructions']
    cfg.update(work_dir=str(folder), experiment_name='_'.join(folder.parts[-2:]), log_level='WARNING')
    return cfg


@pytest.fixture
def train(load, workplace, monkeypatch, tmp_path):
    """Train by a config of Fashion-MNIST for two iterations; returns the runner."""

    def run(recipe, *options, folder=tmp_path):
        monkeypatch.chdir(workplace)
        cfg = shorten(load(recipe, 'fashion', *options), folder)
        runner = build_runner(cfg)
        runner.train()
        assert runner.iter == 2
        return runner

    return run


def test_a_tokenizer_its_cae_and_the_second_round(train, tmp_path):
    """Each on what the one before it has left."""
    checkpoint = 'model.target_generator.checkpoint'
    train('tokenizer', folder=tmp_path / 'one')
    runner = train('cae_vit', f'{checkpoint}={tmp_path}/one/tokenizer.pth', folder=tmp_path / 'two')
    assert len(runner.train_dataloader.dataset) == 200
    runner = train('cae_teacher_vit', f'{checkpoint}={tmp_path}/two/iter_2.pth', folder=tmp_path / 'three')
    assert all(parameter.isfinite().all() for parameter in runner.model.parameters())


@pytest.mark.parametrize('recipe', ['cae_pixels_vit', 'mae_vit', 'simmim_vit', 'data2vec_vit', 'ijepa_vit'])
def test_pretraining_without_a_tokenizer(train, recipe):
    runner = train(recipe)
    assert all(parameter.isfinite().all() for parameter in runner.model.parameters())


@pytest.mark.parametrize('recipe', LABELLED)
def test_classification_runs(train, recipe):
    runner = train(recipe, 'model.backbone.init_cfg=None', 'train_dataloader.dataset.labels=50')
    assert len(runner.train_dataloader.dataset) == 50 and len(runner.val_dataloader.dataset) == 40
    assert 'accuracy/top1' in runner.test() and len(runner.test_dataloader.dataset) == 60


def test_neighbours_run(load, workplace, monkeypatch, tmp_path):
    monkeypatch.chdir(workplace)
    cfg = load('knn_vit', 'fashion', 'test_cfg.bank_dataloader.dataset.labels=100', 'test_split=val')
    cfg.update(work_dir=str(tmp_path), experiment_name=tmp_path.name, log_level='WARNING')
    runner = build_runner(cfg)
    assert runner.test()['k10/accuracy/top1'] > 50  # by shape, which random weights tell too
    assert len(runner.test_dataloader.dataset) == 40


@pytest.mark.parametrize('recipe', DENSE)
def test_detection_and_segmentation_run(train, recipe):
    # The threshold has a detector that knows nothing yet find something.
    runner = train(recipe, *(['model.test_cfg.rcnn.score_thr=0.0', 'model.test_cfg.rcnn.max_per_img=5'] if 'rcnn' in recipe else []))
    assert len(runner.train_dataloader.dataset) == 40 and len(runner.val_dataloader.dataset) == 10
    metrics = runner.test()
    assert set(metrics) & {'coco/bbox_mAP', 'mIoU'}
    classes = runner.test_dataloader.dataset.metainfo['classes']
    assert classes[-10] == '0_t-shirt' and classes[-1] == '9_ankle-boot'


def test_few_labels_are_the_same_pictures_in_every_run(load, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    init_default_scope('mmpretrain')

    def chosen(*options):
        dataset = DATASETS.build(copy.deepcopy(load('finetune_vit', 'fashion', *options).train_dataloader.dataset))
        labels = np.bincount(dataset.get_gt_labels())
        return {dataset.get_data_info(i)['img_path'] for i in range(len(dataset))}, labels.tolist()

    hundred, counts = chosen()
    assert len(hundred) == 100 and counts == [10] * 10 and (hundred, counts) == chosen()
    assert hundred < chosen('train_dataloader.dataset.labels=150')[0]
    assert hundred != chosen('train_dataloader.dataset.seed=1')[0]
    assert all('classification/train/' in path for path in hundred)


def test_classes_are_called_as_their_folders(load, workplace):
    folders = sorted(path.name for path in (workplace / 'data/fashion/classification/train').iterdir())
    assert list(load('mask_rcnn_vit', 'fashion').fashion_classes) == folders
    assert load('upernet_vit', 'fashion').model.decode_head.num_classes == 1 + len(folders)
