"""Configs and --cfg-options: what is accepted, what is refused, and what the message says."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
from mmengine.config import Config

from mmcae import compat
from mmcae.utils.config import complete_dataloaders, last_checkpoint, load_config, parse_options, set_work_dir
from mmcae.utils.errors import ConfigError, DependencyError

CONFIG = """
data_root = 'data/toy'
batch = 4
pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=32)]
model = dict(type='ImageClassifier', backbone=dict(type='ResNet', depth=18), train_cfg=dict(rpn=dict(nms_pre=10)))
train_dataloader = dict(batch_size=batch, num_workers=2, dataset=dict(type='CustomDataset', data_root=data_root, pipeline=pipeline))
train_cfg = dict(by_epoch=True, max_epochs=2)
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3), paramwise_cfg=dict(custom_keys=dict(norm1=dict(decay_mult=0.0))))
randomness = dict(seed=0)
default_hooks = dict(logger=dict(type='LoggerHook'))
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'toy_config.py'
    path.write_text(CONFIG)
    return path


@pytest.mark.parametrize(
    'option',
    [
        'train_dataloader.batch_size=8',
        'train_dataloader.dataset.pipeline.1.scale=(32,64)',
        'model.backbone.style=caffe',  # a new argument of something with a type
        'model.backbone.init_cfg.type=Pretrained',
        'model.train_cfg.rcnn.score=0.5',  # a new part of a dict without a type
        'optim_wrapper.paramwise_cfg.custom_keys.norm2.decay_mult=0.0',
        'optim_wrapper.clip_grad.max_norm=1.0',
        'load_from=x.pth',  # known to the runner, absent from the config
        'randomness.deterministic=True',
        'env_cfg.dist_cfg.timeout=60',
        'find_unused_parameters=True',
        'optim_wrapper.optimizer.lr=1e-4',
        'default_hooks.visualization.type=VisualizationHook',
    ],
)
def test_accepted_and_applied(config, option):
    cfg = load_config(config, [option])
    (key, value), *_ = parse_options([option]).items()
    node = cfg
    for part in key.split('.'):
        node = node[int(part)] if part.isdigit() else node[part]
    assert node == value


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('modle.backbone.depth=50', "'modle' names nothing in the config; did you mean 'model'?"),
        ('resmue=True', "'resmue' names nothing in the config; did you mean 'resume'?"),
        ('randomness.sed=1', "'sed' names nothing in the config; did you mean 'seed'?"),
        ('env_cfg.cudnn_benchmrk=True', "did you mean 'cudnn_benchmark'?"),
        ('train_dataloader.batchsize=8', "'train_dataloader' has no 'batchsize'; did you mean 'batch_size'?"),
        ('model.train_cfg.rpn.nms_pree=5', "did you mean 'nms_pre'?"),
        ('train_dataloader.dataset.pipeline.7.scale=1', "'train_dataloader.dataset.pipeline' is a list of 2; '7' is no number below that"),
        ('train_dataloader.dataset.pipeline.x.scale=1', "'x' is no number"),
        ('model.backbone.depth.x=1', "'model.backbone.depth' is 18 and has no parts"),
        ('data_rot=elsewhere', "'data_rot' names nothing in the config; did you mean 'data_root'?"),
        ('pipeline.7.scale=64', "'pipeline' is a list of 2; '7' is no number below that"),
        ('batch=many', 'expected a number, as 4 now'),
        ('optim_wrapper.optimizer.lr=fast', 'expected a number, as 0.001 now'),
        ('train_cfg.by_epoch=3', 'expected True or False'),
        ('model.backbone=ResNet', 'it has parts (type, depth); set one of them'),
        ('train_dataloader.batch_size', "--cfg-options takes key=value, got 'train_dataloader.batch_size'"),
        ('train_dataloader.batch_size=0', 'train_dataloader.batch_size=0: expected a whole number, at least 1'),
        ('train_dataloader.batch_size=2.5', 'train_dataloader.batch_size=2.5: expected a whole number'),
        ('train_dataloader.num_workers=-1', 'train_dataloader.num_workers=-1: expected a whole number, at least 0'),
        ('default_scope=mmpretrian', "did you mean 'mmpretrain'"),
    ],
)
def test_refused(config, option, message):
    with pytest.raises(ConfigError) as refusal:
        load_config(config, [option])
    assert message in str(refusal.value)


def test_values_are_parsed_by_mmengines_rules():
    assert parse_options(['a=1', 'b.c=[1,(2,3)]', 'd=x=y', 'e=None', 'f=True', 'g=1e-3']) == {
        'a': 1, 'b.c': [1, (2, 3)], 'd': 'x=y', 'e': None, 'f': True, 'g': 1e-3
    }  # fmt: skip
    assert parse_options(['a=/data/my photos', 'b=[1, 2]']) == {'a': '/data/my photos', 'b': [1, 2]}


def test_absent_config_is_named_with_the_nearest(config):
    with pytest.raises(ConfigError) as refusal:
        load_config(config.with_name('toy_confg.py'))
    assert 'toy_confg.py' in str(refusal.value) and f'did you mean {str(config)!r}' in str(refusal.value)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('model = dict(', 'SyntaxError'),
        ('model = undefined', "NameError: name 'undefined' is not defined"),
        ("_base_ = 'absent.py'", 'absent.py'),
        ('x = 1', 'has no `model`'),
        ("model = dict(type='X')\nparam_schedulers = []", "sets 'param_schedulers', which nothing reads; did you mean 'param_scheduler'?"),
    ],
)
def test_broken_config_is_named(tmp_path, text, message):
    path = tmp_path / 'broken.py'
    path.write_text(text)
    with pytest.raises(ConfigError) as refusal:
        load_config(path)
    assert 'broken.py' in str(refusal.value) and message in str(refusal.value)


def test_missing_library_of_the_scope(config, monkeypatch):
    def missing(library):
        raise DependencyError(f'{library} is not installed')

    monkeypatch.setattr(compat, 'require', missing)
    with pytest.raises(DependencyError, match='mmseg is not installed'):
        load_config(config, ['default_scope=mmseg'])


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('scope', ['mmpretrain', 'mmdet'])
def test_dataloaders_get_what_torch_needs(workers, scope):
    loader = dict(batch_size=1, num_workers=workers, persistent_workers=True, prefetch_factor=2)
    cfg = Config(dict(default_scope=scope, train_dataloader=loader, val_dataloader=None))
    complete_dataloaders(cfg)
    completed = cfg.train_dataloader
    assert completed.pin_memory == compat.has_accelerator()
    assert ('collate_fn' in completed) == (scope == 'mmpretrain')
    assert completed.get('persistent_workers', False) == bool(workers)
    assert ('prefetch_factor' in completed) == bool(workers)


def test_work_dir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given, in_config, expected in (('a', 'b', 'a'), (None, 'b', 'b'), (None, None, 'work_dirs/toy')):
        cfg = Config(dict(work_dir=in_config))
        set_work_dir(cfg, given, 'configs/toy.py')
        assert cfg.work_dir == expected and Path(expected).is_dir() and not list(Path(expected).iterdir())


def test_work_dir_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(ConfigError, match='Cannot write results to .*file/run.*--work-dir'):
        set_work_dir(Config({}), str(tmp_path / 'file' / 'run'), 'toy.py')


def test_json_and_yaml_configs(tmp_path):
    path = tmp_path / 'toy.json'
    path.write_text(json.dumps(dict(model=dict(type='X'))))
    assert load_config(path, ['model.y=1']).model == dict(type='X', y=1)


def test_options_may_be_absent(config):
    assert parse_options(Namespace(options=None).options) == {}
    assert load_config(config).randomness.seed == 0


@pytest.mark.parametrize(
    'settings, name',
    [
        (dict(train_cfg=dict(max_iters=7)), 'iter_7.pth'),
        (dict(train_cfg=dict(by_epoch=True, max_epochs=3)), 'epoch_3.pth'),
        (dict(train_cfg=dict(max_iters=7), default_hooks=dict(checkpoint=dict(filename_tmpl='tokenizer.pth'))), 'tokenizer.pth'),
        (dict(train_cfg=dict(max_iters=7), default_hooks=dict(checkpoint=dict(filename_tmpl='step-{}.pth'))), 'step-7.pth'),
    ],
)
def test_the_last_checkpoint_has_the_name_that_training_gives_it(settings, name):
    assert last_checkpoint(Config(settings)) == name
