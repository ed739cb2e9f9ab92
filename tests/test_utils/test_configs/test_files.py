"""Config files read as mmengine reads them, and what mmengine does not: byte order marks, YAML without code, errors with lines, helpers."""

import copy
import json
import pickle
from pathlib import Path

import mmpretrain
import pytest
import torch
from mmengine.config import Config

from mmcae.utils.configs.files import read_config_file
from mmcae.utils.configs.loading import load_config
from mmcae.utils.errors import ConfigError, InputError

ROOT = Path(__file__).resolve().parents[3]
THEIRS = Path(mmpretrain.__file__).parent / '.mim/configs'
MODEL = "model = dict(type='X')\n"


@pytest.fixture
def write(tmp_path):
    """Write a config into the folder of the test and return its path: `write('a.py', text)`."""

    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def same(path):
    """Whether both readers make the same of a file; returns the config."""
    ours, theirs = read_config_file(path), Config.fromfile(path)
    assert repr(ours._cfg_dict) == repr(theirs._cfg_dict)
    for name in ('text', 'filename', 'env_variables'):
        assert getattr(ours, name) == getattr(theirs, name)
    return ours


@pytest.mark.parametrize('path', sorted(ROOT.glob('configs/*/*.py')), ids=lambda path: f'{path.parent.name}/{path.stem}')
def test_our_configs_are_read_as_mmengine_reads_them(path):
    same(path)


@pytest.mark.parametrize('name', ['beit', 'cae', 'mae', 'resnet', 'swin_transformer'])
def test_the_configs_of_mmpretrain_are_read_as_mmengine_reads_them(name):
    paths = sorted((THEIRS / name).rglob('*.py'))[:6]
    assert paths
    for path in paths:
        same(path)


def test_everything_a_config_can_say(write, monkeypatch):
    monkeypatch.setenv('MMCAE_TEST_ROOT', '/from the environment')
    write('bases/json.json', json.dumps(dict(width=3, deep=dict(a=1, b=[1, dict(c=2)]))))
    write('bases/yaml.yaml', "name: 'from yaml'\nrate: 0.5\n")
    write('bases/python.py', 'size = 32\nhalf = size // 2\ndef double(x):\n    return 2 * x\nboth = [double(s) for s in (size, half)]\n')
    path = write(
        'config.py',
        """
_base_ = ['bases/json.json', 'bases/yaml.yaml', './bases/python.py', 'mmpretrain::_base_/default_runtime.py']
work_dir = 'runs/{{ fileBasenameNoExtension }}{{fileExtname}}'
here, file = '{{ fileDirname }}', '{{fileBasename}}'
root, other = '{{$MMCAE_TEST_ROOT:/default}}', '{{$MMCAE_TEST_ABSENT:/default}}'
deep = dict(a={{_base_.size}}, c=[{{_base_.both}}, {{_base_.deep.b}}])
model = dict(type='X', size=_base_.size * 2, rate=_base_.rate)
default_hooks = dict(logger=dict(interval=3))
if model['size'] > 3:
    extra = [i for i in range(3)]
""",
    )
    cfg = same(path)
    assert cfg.here == str(path.parent) and cfg.root == '/from the environment' and cfg.env_variables
    assert cfg.deep.c == [[64, 32], [1, dict(c=2)]]
    assert cfg.default_hooks.logger == dict(type='LoggerHook', interval=3, _scope_='mmpretrain')


@pytest.mark.parametrize('mark', [b'', b'\xef\xbb\xbf'])
@pytest.mark.parametrize('end', [b'\n', b'\r\n'])
def test_marks_and_line_ends(write, mark, end):
    write('base.json', mark + end.join([b'{"a":', b'1}']))
    write('more.yaml', mark + end.join([b'b:', b'  - 2', b'']))
    path = write('config.py', mark + end.join([b"_base_ = ['base.json', 'more.yaml']", b"words = '''x", b"y'''", MODEL.strip().encode()]))
    cfg = load_config(path)
    assert (cfg.a, cfg.b, cfg.words) == (1, [2], 'x\ny')


@pytest.mark.parametrize('name', ['config.yaml', 'config.yml', 'base.yaml'])
def test_yaml_runs_no_code(write, tmp_path, name):
    mark = tmp_path / 'code-was-run'
    path = write(name, f'model:\n  type: !!python/object/apply:os.system ["touch {mark}"]\n')
    if name == 'base.yaml':
        path = write('config.py', "_base_ = 'base.yaml'")
    with pytest.raises(InputError, match=rf'{name}, line 2: the tag !!python/object/apply:os.system was refused'):
        load_config(path)
    # Nor code that only comes together when placeholders are filled in.
    path = write('joined.yaml', f"model: {{{{$MMCAE_TEST_ABSENT:!!python/object/apply:os.system}}}} ['touch {mark}']\n")
    with pytest.raises(InputError, match='joined.yaml, line 1: the tag'):
        load_config(path)
    assert not mark.exists()


def test_pickles_are_no_configs(write):
    with pytest.raises(ConfigError, match='config.pkl cannot be read: configs are .py, .yaml, .yml or .json files'):
        load_config(write('config.pkl', pickle.dumps(dict(model=dict(type='X')))))
    with pytest.raises(ConfigError, match='base.pkl cannot be read: configs are'):
        write('base.pkl', pickle.dumps({}))
        load_config(write('config.py', "_base_ = 'base.pkl'"))


HELPERS = """
import functools, math, re
from collections import OrderedDict, namedtuple
from datetime import date
from enum import IntEnum
from os.path import join
from pathlib import Path

class Size(IntEnum):
    SMALL = 16

pattern, today, half = re.compile('x'), date(2024, 1, 2), functools.partial(pow, 2)
root = Path('/data') / 'images'
sizes = {Size.SMALL: root}
Pair = namedtuple('Pair', 'a b')
model = OrderedDict(
    type='X',
    root=root,
    paths=[root, (root,)],
    size=Size.SMALL,
    pair=Pair(1, 2),
    joined=join(str(root), 'a'),
    kinds={3, 4},
    most=math.inf,
    raw=b'x',
    steps=range(3),
)
"""


def test_helpers_of_a_file_do_not_get_into_the_config(write, tmp_path):
    """Whatever comes out can be copied, sent to a worker, written to the work dir and read again."""
    base = write('base.py', HELPERS)
    write('other.py', 'from pathlib import Path\nother = Path("/x")\n')  # the same name in two bases
    cfg = load_config(write('config.py', f"_base_ = ['{base}', 'other.py']\nfrom pathlib import Path\nwork_dir = Path('runs')\n"))
    assert set(cfg) == {'root', 'sizes', 'model', 'other', 'work_dir'}
    assert (cfg.root, cfg.other, cfg.work_dir, cfg.sizes) == ('/data/images', '/x', 'runs', {16: '/data/images'})
    assert cfg.model == dict(
        type='X', root='/data/images', paths=['/data/images', ('/data/images',)], size=16, pair=(1, 2), joined='/data/images/a',
        kinds={3, 4}, most=float('inf'), raw=b'x', steps=range(3)
    )  # fmt: skip
    cfg.dump(tmp_path / 'dumped.py')
    for copied in (copy.deepcopy(cfg), pickle.loads(pickle.dumps(cfg)), load_config(tmp_path / 'dumped.py')):
        assert copied._cfg_dict == cfg._cfg_dict


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ("model = dict(type='X', hook=lambda x: x)", 'model.hook is <lambda>, which cannot be written'),
        ('from pathlib import Path\nmodel = dict(type=Path)', 'model.type is Path'),
        ("import re\nmodel = dict(type='X', a=[0, dict(b=re.compile('x'))])", 'model.a.1.b is a Pattern'),
        ("import datetime\nmodel = dict(type='X', day=datetime.date(2024, 1, 1))", 'model.day is a date'),
        ("import functools\ncustom_hooks = [functools.partial(print)]\nmodel = dict(type='X')", 'custom_hooks.0 is a partial'),
        ("model = {'type': 'X', 'class': 1}", "model has the key 'class'"),
        ("model = {'type': 'X', \"it's\": 1}", 'model has the key "it\'s"'),
    ],
)
def test_settings_that_no_config_can_hold(write, line, message):
    with pytest.raises(ConfigError, match=f'config.py: {message}'):
        load_config(write('config.py', line))


def test_keys_that_python_can_read_stay(write, tmp_path):
    cfg = load_config(write('config.py', "model = {'type': 'X', 'class': 1, '.bias': 2, 3: 4, None: 5}"))
    cfg.dump(tmp_path / 'dumped.py')
    assert load_config(tmp_path / 'dumped.py').model == cfg.model == {'type': 'X', 'class': 1, '.bias': 2, 3: 4, None: 5}


@pytest.mark.parametrize(
    ('files', 'message'),
    [
        ({'config.py': "_base_ = 'base.py'", 'base.py': 'a = 1\nb = undefined'}, r"base.py cannot be read: NameError: .*\(line 2\)"),
        ({'config.py': "_base_ = 'base.py'", 'base.py': 'a = (\n'}, r'base.py cannot be read: SyntaxError: .*\(line 1\)'),
        ({'config.py': "_base_ = 'base.py'", 'base.py': 'def f():\n    1 / 0\n\na = f()'}, r'base.py .*ZeroDivisionError.*\(line 2\)'),
        ({'config.py': "_base_ = ['absent.py']"}, r'config.py builds on .*absent.py, which does not exist'),
        ({'config.py': '_base_ = [3]'}, r'config.py: _base_ names files, and 3 is none'),
        ({'config.py': '_base_ = names'}, r"config.py cannot be read: NameError: name 'names'"),
        ({'config.py': "_base_ = 'base.py'", 'base.py': "_base_ = 'config.py'"}, r'base.py builds on .*config.py, which builds on it'),
        ({'config.py': "_base_ = 'config.py'"}, r'config.py builds on .*config.py'),
        ({'config.py': "_base_ = ['a.py', 'b.py']", 'a.py': 'x = y = 1', 'b.py': 'y = x = 2'}, 'two of its _base_ files set x, y'),
        ({'config.py': "_base_ = 'nosuch::a.py'"}, r'config.py cannot be read: .*mmdet::'),
        ({'config.py': "a = '{{$MMCAE_TEST_ABSENT:}}'"}, 'config.py needs the environment variable MMCAE_TEST_ABSENT'),
        ({'config.py': "_base_ = 'a.py'\nb = {{_base_.c}}", 'a.py': 'b = 1'}, 'config.py cannot be read: .*c'),
        ({'config.py': b"a = '\xe4'"}, 'config.py is no text in UTF-8'),
        ({'config.py': 'a = 1'.encode('utf-16')}, 'config.py is encoded in UTF-16'),
        ({'config.py': "_base_ = 'a.json'", 'a.json': '{"a": 1,}'}, 'a.json is no JSON'),
        ({'config.py': "_base_ = 'a.json'", 'a.json': '[1]'}, 'a.json holds a list'),
        ({'config.py': "_base_ = 'a.yaml'", 'a.yaml': ''}, 'a.yaml holds a NoneType'),
        ({'config.py': "_base_ = 'a.yaml'", 'a.yaml': 'a-b: 1'}, "a.yaml sets 'a-b'"),
        ({'config.py': "_base_ = 'a.yaml'", 'a.yaml': 'a: [1'}, 'a.yaml is no YAML'),
        ({'config.py': f"custom_imports = dict(imports=['no_such_module'])\n{MODEL}"}, 'No module named .*pip install no_such_module'),
        ({'config.py': f'custom_imports = dict(imports=3)\n{MODEL}'}, 'custom_imports: custom_imports must be a list'),
        ({'config.py': b'\xef\xbb\xbffrom mmengine.config import read_base\nwith read_base():\n    from .a import *'}, 'byte order mark'),
        ({'config.py': 'with open("x"):\n    pass'}, r'config.py cannot be read: FileNotFoundError.*\(line 1\)'),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_file_and_line(write, files, message):
    paths = [write(name, content) for name, content in files.items()]
    with pytest.raises(InputError, match=message):
        load_config(paths[0])


def test_configs_with_imports(write, tmp_path):
    """Those are mmengine's; helpers and paths are treated in the same way."""
    write('base.py', 'from torch.nn import ReLU\nsize = 3\nact = dict(type=ReLU)\nhelp = lambda x: x\n')
    path = write(
        'config.py',
        'from mmengine.config import read_base\nfrom torch.optim import AdamW\nwith read_base():\n    from .base import *\n'
        "model = dict(type='X', size=size, act=act)\noptim_wrapper = dict(optimizer=dict(type=AdamW, lr=1e-3))\n",
    )
    cfg = load_config(path, ['optim_wrapper.optimizer.lr=1e-4'])
    assert 'help' not in cfg and cfg.size == 3
    assert cfg.optim_wrapper.optimizer == dict(type=torch.optim.AdamW, lr=1e-4) and cfg.model.act.type is torch.nn.ReLU
    dumped = Config.fromstring(cfg.pretty_text, '.py')
    assert dumped.model == dict(type='X', size=3, act=dict(type='torch.nn.ReLU'))
    with pytest.raises(ConfigError, match="'size' is a variable that is not set in a Python file with _base_; set instead: model.size"):
        load_config(path, ['size=4'])
    path = write('calls.py', f'from pathlib import Path\nimport torch\nroot = Path("x")\n{MODEL}')
    with pytest.raises(ConfigError, match=r'calls.py cannot be read: .*cannot call what they import \(line 3\)'):
        load_config(path)


def test_a_file_at_home(write, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    write('config.py', MODEL)
    assert load_config('~/config.py').model.type == 'X'


def test_a_number_in_yaml(write):
    """1e-3 is a number, as in YAML 1.2 and everywhere else; PyYAML takes it for a text."""
    assert load_config(write('config.yaml', 'model:\n  lr: 1e-3\n  name: 1e-3x\n')).model == dict(lr=1e-3, name='1e-3x')
