"""Variables of config files, set from the command line: what is made of them follows, in bases, branches and tuples."""

from pathlib import Path

import pytest
from mmengine.config import Config

from mmcae.utils.configs.loading import load_config
from mmcae.utils.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
BASE = """
data_root = 'data/base/'
image_size, patch_size = 32, 8
tokenizer = None
scales = [dict(side=image_size), dict(side=64)]
if tokenizer is None:
    outputs = patch_size**2 * 3
else:
    outputs = 64
twice = {side: [image_size for image_size in (1, 2)] for side in (3,)}
model = dict(type='X', grid=image_size // patch_size, outputs=outputs, tokenizer=tokenizer)
train_dataloader = dict(batch_size=2, dataset=dict(data_root=data_root, ann_file=data_root + 'train.json', scales=scales))
"""
CONFIG = """
_base_ = 'base.py'
epochs = 3
epochs = epochs * 2
train_cfg = dict(max_epochs=epochs, size={{_base_.image_size}})
model = dict(patches=_base_.image_size * 10)
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / 'base.py').write_text(BASE)
    (tmp_path / 'config.py').write_text(CONFIG)
    return tmp_path / 'config.py'


def test_nothing_changes_without_options(config):
    cfg = load_config(config)
    assert cfg.train_dataloader.dataset.ann_file == 'data/base/train.json' and cfg.model.grid == 4
    assert cfg.train_cfg == dict(max_epochs=6, size=32)


def test_what_is_derived_follows_in_the_base_and_in_the_config(config):
    cfg = load_config(config, ['image_size=64', 'data_root=/my data', 'epochs=5', 'train_dataloader.batch_size=7'])
    assert cfg.image_size == 64 and cfg.model.grid == 8 and cfg.model.patches == 640 and cfg.train_cfg == dict(max_epochs=5, size=64)
    assert cfg.train_dataloader.dataset.ann_file == '/my data/train.json'
    assert cfg.train_dataloader.dataset.data_root == cfg.data_root == '/my data/'  # the slash that configs count on
    assert cfg.train_dataloader.batch_size == 7 and cfg.patch_size == 8 and cfg.twice == {3: [1, 2]}
    assert load_config(config).image_size == 32  # nothing stays behind


def test_branches_follow(config):
    cfg = load_config(config, ['tokenizer=a.pth'])
    assert (cfg.model.tokenizer, cfg.model.outputs) == ('a.pth', 64)
    assert load_config(config, ['patch_size=4']).model.outputs == 48


def test_parts_of_a_variable(config):
    cfg = load_config(config, ['scales.1.side=128', 'scales.0.side=16', 'scales.0.name=small'])
    assert cfg.train_dataloader.dataset.scales == cfg.scales == [dict(side=16, name='small'), dict(side=128)]


def test_the_dumped_config_has_the_new_values(config, tmp_path):
    load_config(config, ['image_size=64', 'data_root=/my']).dump(tmp_path / 'dumped.py')
    dumped = Config.fromfile(tmp_path / 'dumped.py')
    assert dumped.image_size == 64 and dumped.model.grid == 8 and dumped.train_dataloader.dataset.ann_file == '/my/train.json'


def test_a_variable_that_no_python_file_sets_is_refused(tmp_path):
    (tmp_path / 'base.json').write_text('{"width": 3, "model": {"type": "X", "width": 3}}')
    (tmp_path / 'config.py').write_text("_base_ = 'base.json'")
    with pytest.raises(ConfigError, match="'width' is a variable that is not set in a Python file.*set instead: model.width"):
        load_config(tmp_path / 'config.py', ['width=4'])


def test_mistakes_in_the_value_show_as_what_they_break(config):
    with pytest.raises(ConfigError, match=r'base.py cannot be read: ZeroDivisionError.*\(line 11\)'):
        load_config(config, ['patch_size=0'])


@pytest.mark.parametrize('path', sorted(ROOT.glob('configs/[!_]*/*.py')), ids=lambda path: path.stem)
def test_every_config_of_ours_follows_its_data_root(path):
    """All that have one, read with another: no path of the old one is left in what the libraries read."""
    try:
        cfg = load_config(path)
    except ImportError:
        pytest.skip('needs a library that is not here')
    if 'data_root' not in cfg:
        pytest.skip('has no data_root')
    old = cfg.data_root
    cfg = load_config(path, ['data_root=/elsewhere'])
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        assert old not in str(cfg.get(loader)), loader
    assert '/elsewhere' in str(cfg.get('train_dataloader') or cfg.get('test_dataloader'))
