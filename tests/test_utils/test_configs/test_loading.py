"""Configs and --cfg-options: what is accepted, what is refused, and what the message says."""

import json
from pathlib import Path

import pytest
from mmengine.config import Config, ConfigDict

from mmcae import compat
from mmcae.utils.configs import loading as config_module
from mmcae.utils.configs.loading import complete_dataloaders, last_checkpoint, load_config, set_work_dir
from mmcae.utils.errors import ConfigError, DependencyError

CONFIG = """
data_root = 'data/toy'
batch = 4
pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=32)]
init_cfg = dict(type='Pretrained', checkpoint='x.pth')
model = dict(type='ImageClassifier', backbone=dict(type='ResNet', depth=18), train_cfg=dict(rpn=dict(nms_pre=10)), init_cfg=init_cfg)
metainfo = dict(classes=('cat', 'dog'))
train_dataloader = dict(
    batch_size=batch,
    num_workers=2,
    dataset=dict(type='mmpretrain.CustomDataset', data_root=data_root, metainfo=metainfo, pipeline=pipeline),
)
val_evaluator = dict(type='mmdet.CocoMetric', metric='bbox')
train_cfg = dict(by_epoch=True, max_epochs=2)
optim_wrapper = dict(
    type='AmpOptimWrapper',
    dtype='float16',
    loss_scale='dynamic',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999)),
    paramwise_cfg=dict(custom_keys=dict(norm1=dict(decay_mult=0.0))),
)
load_from = 'old.pth'
randomness = dict(seed=0)
default_hooks = dict(logger=dict(type='LoggerHook'), checkpoint=dict(type='CheckpointHook', save_best='auto'))
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'toy_config.py'
    path.write_text(CONFIG)
    return path


@pytest.mark.parametrize(
    ('option', 'value'),
    [
        ('train_dataloader.batch_size=8', 8),
        ('train_dataloader.dataset.pipeline.1.scale=(32,64)', (32, 64)),
        ('model.backbone.style=caffe', 'caffe'),  # a new argument of something with a type
        ('model.backbone.init_cfg.type=Pretrained', 'Pretrained'),
        ('model.train_cfg.rcnn.score=0.5', 0.5),  # a new part of a dict without a type
        ('optim_wrapper.paramwise_cfg.custom_keys.norm2.decay_mult=0.0', 0.0),
        ('optim_wrapper.clip_grad.max_norm=1.0', 1.0),
        ('load_from=x.pth', 'x.pth'),  # known to the runner, absent from the config
        ('randomness.deterministic=True', True),
        ('env_cfg.dist_cfg.timeout=60', 60),
        ('find_unused_parameters=True', True),
        ('optim_wrapper.optimizer.lr=1e-4', 1e-4),
        ('optim_wrapper.optimizer.betas.1=0.99', 0.99),  # a part of a tuple
        ('default_hooks.visualization.type=VisualizationHook', 'VisualizationHook'),
        # a text stands for itself
        ('train_dataloader.dataset.data_root=2024', '2024'),
        ('train_dataloader.dataset.data_root=a,b/imgs', 'a,b/imgs'),
        ('train_dataloader.dataset.data_root=/my photos/[raw], 1', '/my photos/[raw], 1'),
        ('train_dataloader.dataset.data_root="quoted"', 'quoted'),
        ("train_dataloader.dataset.data_root=it's", "it's"),
        ('train_dataloader.dataset.data_root=true', 'true'),
        ('train_dataloader.dataset.data_root=~/imgs', str(Path('~/imgs').expanduser())),
        ('model.init_cfg.checkpoint=lr=1e-3,wd=0/encoder.pth', 'lr=1e-3,wd=0/encoder.pth'),
        ('model.init_cfg.checkpoint=2024', '2024'),
        ('model.backbone.init_cfg.checkpoint=1,2', '1,2'),  # also where there is none yet
        ('load_from=1,2', '1,2'),
        ('experiment_name=7', '7'),
        # unless its reader takes other things, too
        ('val_evaluator.metric=[bbox,segm]', ['bbox', 'segm']),
        ('val_evaluator.metric=segm', 'segm'),
        ('optim_wrapper.loss_scale=512.', 512.0),
        ('optim_wrapper.dtype=None', None),
        ('default_hooks.checkpoint.save_best=None', None),
        ('default_hooks.checkpoint.save_best=[acc,loss]', ['acc', 'loss']),
        ('resume=true', True),
        # None takes something away
        ('load_from=None', None),
        ('model.train_cfg=None', None),
        ('randomness.seed=None', None),
        # lists and dicts
        ('optim_wrapper.optimizer.betas=[0.9,0.95]', (0.9, 0.95)),
        ('train_dataloader.dataset.metainfo.classes=2024,2025', ('2024', '2025')),
        ('model.backbone.out_indices=[1,3]', [1, 3]),
        ("model.backbone.norm_cfg=dict(type='BN', eps=1e-3)", dict(type='BN', eps=1e-3)),
        ("custom_hooks=[dict(type='EMAHook', momentum=1e-4), {'type': 'X'}]", [dict(type='EMAHook', momentum=1e-4), dict(type='X')]),
        ('model.backbone=dict(depth=50)', dict(type='ResNet', depth=50)),
        ('model.backbone=dict(_delete_=True, type=mmcae.CAEViT)', dict(type='mmcae.CAEViT')),
        ('train_dataloader.dataset.pipeline.0=dict(color_type=grayscale)', dict(type='LoadImageFromFile', color_type='grayscale')),
        ('train_cfg.max_epochs=1e2', 100),
        ('test_evaluator=[]', []),
    ],
)
def test_accepted_and_applied(config, option, value):
    """The value, its type, and nothing else: the rest of the config is what it was."""
    cfg = load_config(config, [option])
    key = option.split('=')[0]
    node, before = cfg, load_config(config)
    for part in key.split('.'):
        node = node[int(part)] if part.isdigit() else node[part]
    assert node == value and type(node) in (type(value), ConfigDict)
    top = key.split('.')[0]
    assert {name: part for name, part in cfg.items() if name != top} == {name: part for name, part in before.items() if name != top}
    assert Config.fromstring(cfg.pretty_text, '.py')._cfg_dict == cfg._cfg_dict


def test_a_dict_is_emptied_before_it_is_filled(config):
    backbone = load_config(config, ['model.backbone.type=ViT', 'model.backbone._delete_=True', 'model.backbone.depth=3']).model.backbone
    assert backbone == dict(type='ViT', depth=3)


def test_the_last_of_two_options_counts(config):
    assert load_config(config, ['randomness.seed=1', 'randomness.seed=2']).randomness.seed == 2


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
        ('data_root=None', "data_root=None: expected a text, as 'data/toy' now; None is no value for it"),
        ('train_dataloader.dataset.data_root=None', 'data_root=None: expected a text'),
        ('model.init_cfg.checkpoint=None', 'expected a text'),
        ('model.backbone.type=None', 'expected a text'),
        ('default_scope=None', 'default_scope=None is none of'),
        ('optim_wrapper.optimizer.lr=None', 'expected a number, as 0.001 now; None is no value for it'),
        ('optim_wrapper.optimizer.lr=True', 'expected a number, as 0.001 now'),
        ('optim_wrapper.optimizer.lr={1: 2}', 'expected a number'),
        ('train_cfg.by_epoch=None', 'expected True or False'),
        ('model=None', 'expected a dict'),
        ('randomness=None', 'expected a dict'),
        ('randomness.seed=-1', 'randomness.seed=-1: expected a whole number, at least 0'),
        ('randomness.seed=1.5', 'randomness.seed=1.5: expected a whole number'),
        ('log_level=LOUD', "log_level='LOUD' is none of DEBUG"),
        ('train_dataloader.dataset=None', 'train_dataloader.dataset=None: expected a dict(type=...)'),
        ('train_dataloader.dataset.pipeline=[]', 'train_dataloader.dataset.pipeline is empty'),
        ('train_dataloader=[1]', 'train_dataloader=[1]: expected a dict'),
        ('pipeline=5', 'pipeline=5: expected a list, as [{'),
        ('optim_wrapper.optimizer.betas=high', 'expected a tuple, as (0.9, 0.999) now'),
        ('custom_hooks=[1,2', 'brackets or quotes do not match'),
        ('custom_hooks=[(1]', 'brackets or quotes do not match'),
        ('custom_hooks=[dict(type=a b)]', 'it is no Python literal'),
        ('custom_hooks=[dict(type=open("x"))]', 'is a call'),
        ('model.backbone=dict(depth=dict(x=1))', 'model.backbone='),
        ('=3', "takes key=value, got '=3'"),
        ('model..depth=3', "takes key=value, got 'model..depth=3'"),
        ('train_dataloader.batch_size', "--cfg-options takes key=value, got 'train_dataloader.batch_size'"),
        ('train_dataloader.batch_size=0', 'train_dataloader.batch_size=0: expected a whole number, at least 1'),
        ('train_dataloader.batch_size=2.5', 'train_dataloader.batch_size=2.5: expected a whole number'),
        ('train_dataloader.num_workers=-1', 'train_dataloader.num_workers=-1: expected a whole number, at least 0'),
        ('train_cfg.type=EpochBasedTrainLoop', 'train_cfg.by_epoch: the loop EpochBasedTrainLoop says already what is counted'),
        ('default_scope=mmpretrian', "did you mean 'mmpretrain'"),
    ],
)
def test_refused(config, option, message):
    with pytest.raises(ConfigError) as refusal:
        load_config(config, [option])
    assert message in str(refusal.value)


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
        if library == 'mmseg':
            raise DependencyError(f'{library} is not installed')

    monkeypatch.setattr(compat, 'require', missing)
    with pytest.raises(DependencyError, match='mmseg is not installed'):
        load_config(config, ['default_scope=mmseg'])


def their_backends():
    """Every backend of mmengine's that logs to something else than a file."""
    from mmengine.registry import VISBACKENDS
    from mmengine.visualization import vis_backend

    assert vis_backend
    return sorted(set(VISBACKENDS.module_dict) - {'LocalVisBackend'})


@pytest.mark.parametrize('kind', [*their_backends(), 'SwanlabVisBackend'])
@pytest.mark.parametrize('alone', [False, True])
def test_packages_of_loggers(config, monkeypatch, kind, alone):
    """One line with the command, before anything is built; none where the package is there."""
    monkeypatch.setattr(config_module, 'find_spec', lambda name: None)
    backends = f"dict(type='{kind}')" if alone else f"[dict(type='LocalVisBackend'), dict(type='mmengine.{kind}')]"
    config.write_text(CONFIG + f"visualizer = dict(type='Visualizer', vis_backends={backends})\n")
    with pytest.raises(DependencyError, match=rf'{kind} in visualizer.vis_backends needs .*: pip install ["\w]+'):
        load_config(config)
    monkeypatch.setattr(config_module, 'find_spec', lambda name: name)
    assert load_config(config).visualizer


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
    assert load_config(config, None).randomness.seed == load_config(config).randomness.seed == 0


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
