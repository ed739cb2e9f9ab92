"""Text files with byte order marks and any line ends; YAML and pickles that would run code."""

import codecs
import errno
import json
import os
import pickle
import shutil
from collections import OrderedDict
from pathlib import Path

import mmengine.fileio as fileio
import numpy as np
import pytest

from mmcae.utils.errors import DataError
from mmcae.utils.text_files import read_json, read_plainly, read_text, read_yaml

MARK = codecs.BOM_UTF8


class RunsCode:
    """A pickle that makes a file when it is loaded without protection."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f'touch {self.path}',)


@pytest.fixture(autouse=True)
def plain_reading(monkeypatch):
    """As a tool has it; the registries of this process are as before afterwards."""
    for registry in (fileio.backends.backends, fileio.backends.prefix_to_backends, fileio.handlers.file_handlers):
        for name, value in registry.items():
            monkeypatch.setitem(registry, name, value)
    monkeypatch.setattr(fileio.io, 'backend_instances', {})
    read_plainly()


@pytest.mark.parametrize('mark', [b'', MARK])
@pytest.mark.parametrize('end', [b'\n', b'\r\n', b'\r'])
def test_marks_and_line_ends(tmp_path, mark, end):
    lines = ['ä b', '', 'c,d']
    (tmp_path / 'list.txt').write_bytes(mark + end.join(line.encode() for line in lines))
    assert read_text(tmp_path / 'list.txt').split('\n') == lines
    assert fileio.list_from_file(tmp_path / 'list.txt') == lines
    (tmp_path / 'x.json').write_bytes(mark + b'{' + end + b'"a": [1, null]}')
    assert read_json(tmp_path / 'x.json') == fileio.load(tmp_path / 'x.json') == {'a': [1, None]}
    (tmp_path / 'x.yaml').write_bytes(mark + b'a:' + end + b'  - 1e-3' + end)
    assert read_yaml(tmp_path / 'x.yaml') == fileio.load(tmp_path / 'x.yaml') == {'a': [1e-3]}


def test_programs_that_open_files_themselves_get_no_mark(tmp_path):
    """As pycocotools does with the path that mmdet asks the backend for."""
    path = tmp_path / 'coco.json'
    path.write_bytes(MARK + b'{}')
    with fileio.get_local_path(path) as local, open(local) as file:
        assert json.load(file) == {} and local != path
    assert not os.path.exists(local)
    path.write_bytes(b'{}')
    with fileio.get_local_path(path) as local:
        assert str(local) == str(path)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('ä'.encode('latin-1'), 'no text in UTF-8 .* at byte 0'),
        ('x'.encode('utf-16'), 'encoded in UTF-16 or UTF-32: save it as UTF-8'),
        (b'{', 'x.json is no JSON'),
    ],
)
def test_what_is_no_text_or_no_json(tmp_path, content, message):
    (tmp_path / 'x.json').write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_json(tmp_path / 'x.json')
    with pytest.raises(DataError, match='absent.json cannot be read: No such file'):
        read_json(tmp_path / 'absent.json')


@pytest.mark.parametrize(
    'text',
    [
        'a: !!python/object/apply:os.system ["touch {mark}"]',
        'a: !!python/object/new:os.system ["touch {mark}"]',
        'a: !!python/name:os.system',
        'a: !!python/module:os',
        'a: !!python/tuple [1, 2]',
        'a: !<tag:yaml.org,2002:python/object/apply:os.system> ["touch {mark}"]',
        '%TAG ! tag:yaml.org,2002:python/\n---\na: !object/apply:os.system ["touch {mark}"]',
        '? !!python/object/apply:os.system ["touch {mark}"]\n: 1',
        'a: !mine 1',
    ],
)
def test_tags_are_refused_with_file_and_line(tmp_path, text):
    path, mark = tmp_path / 'x.yaml', tmp_path / 'code-was-run'
    path.write_text(text.format(mark=mark))
    with pytest.raises(DataError, match=r'x.yaml, line \d: .*tag .*refused'):
        read_yaml(path)
    with pytest.raises(DataError, match='refused'):
        fileio.load(path)
    assert not mark.exists()


@pytest.mark.parametrize('text', ['a: [1', 'a: *b', '\ta: 1', 'a: 2024-13-45', '{a: 1}: 2'])
def test_what_is_no_yaml(tmp_path, text):
    (tmp_path / 'x.yaml').write_text(text)
    with pytest.raises(DataError, match='x.yaml'):
        read_yaml(tmp_path / 'x.yaml')


def test_pickles_are_data(tmp_path):
    mark = tmp_path / 'code-was-run'
    plain = dict(metainfo=dict(classes=('a', 'b')), data_list=[dict(img_path='x', bbox=[1, 2.5], flag=True, nothing=None, raw=b'x')])
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        content = plain if protocol > 2 else dict(a=[1, 'b'])  # before that, bytes are a call
        (tmp_path / 'x.pkl').write_bytes(pickle.dumps(content, protocol=protocol))
        assert fileio.load(tmp_path / 'x.pkl') == content
    for value in (RunsCode(mark), OrderedDict(a=1), np.zeros(2)):
        (tmp_path / 'x.pkl').write_bytes(pickle.dumps(value))
        with pytest.raises(DataError, match='refused .*it holds .*Save it as JSON'):
            fileio.load(tmp_path / 'x.pkl')
    (tmp_path / 'x.pkl').write_bytes(b'nonsense')
    with pytest.raises(DataError, match='refused'):
        fileio.load(tmp_path / 'x.pkl')
    assert not mark.exists()


def test_what_is_written_can_be_read(tmp_path):
    """mmengine's own YAML of a tuple has a Python tag."""
    for name in ('x.yaml', 'x.json', 'x.pkl'):
        fileio.dump(dict(size=(1, 2), name='a'), tmp_path / name)
        assert fileio.load(tmp_path / name) in (dict(size=[1, 2], name='a'), dict(size=(1, 2), name='a'))
    assert fileio.load(tmp_path / 'x.yaml') == dict(size=[1, 2], name='a')


def test_hidden_folders_are_no_classes_and_hold_no_images(image_folder):
    """For the data sets of mmpretrain, whose classes are folders, and for those without labels."""
    from mmpretrain.datasets import CustomDataset, ImageNet

    root = image_folder('train', count=2)
    expected = CustomDataset(data_root=str(root))
    for hidden in ('.mmcae', '.ipynb_checkpoints', '.git/deep', 'cat/.thumbnails'):
        shutil.copytree(root / 'dog', root / hidden)
    (root / '.empty').mkdir()
    dataset = CustomDataset(data_root=str(root))
    assert dataset.CLASSES == ('cat', 'dog') == expected.CLASSES
    assert [dataset[i] for i in range(len(dataset))] == [expected[i] for i in range(len(expected))]
    assert len(CustomDataset(data_root=str(root), with_label=False)) == 4
    assert len(ImageNet(data_root=str(root.parent), split='train', metainfo=dict(classes=['cat', 'dog']))) == 4


def test_what_fails_for_a_moment_is_read_again(tmp_path, monkeypatch):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a/x.txt').write_text('text')
    failures = []

    def flaky(owner, name):
        real = getattr(owner, name)

        def call(path, *args):
            failures.append(path)
            if len(failures) % 2:
                raise OSError(errno.ESTALE, 'Stale file handle', str(path))
            return real(path, *args)

        monkeypatch.setattr(owner, name, call)

    flaky(Path, 'read_bytes')
    flaky(os, 'scandir')
    assert fileio.get(tmp_path / 'a/x.txt') == b'text' and fileio.get_text(tmp_path / 'a/x.txt') == 'text'
    assert list(fileio.list_dir_or_file(tmp_path)) == ['a'] and len(failures) == 6
    with pytest.raises(FileNotFoundError):
        fileio.get(tmp_path / 'a/y.txt')


def test_the_libraries_read_lists_with_a_mark(tmp_path, image_folder):
    """mmpretrain's and mmseg's data sets, by mmengine's functions."""
    from mmpretrain.datasets import CustomDataset
    from mmseg.datasets import BaseSegDataset

    root = image_folder(classes=('cat', 'dog'), count=2)
    (root / 'list.txt').write_bytes(MARK + b'cat/000.jpg 0\r\ndog/001.png 1\r\n')
    (root / 'classes.txt').write_bytes(MARK + b'cat\r\ndog\r\n')
    data = CustomDataset(data_root=str(root), ann_file='list.txt', classes=str(root / 'classes.txt'))
    assert [data.get_data_info(i)['img_path'] for i in range(2)] == [f'{root}/cat/000.jpg', f'{root}/dog/001.png']
    assert data.CLASSES == ('cat', 'dog')
    (root / 'names.txt').write_bytes(MARK + b'cat/000\r\n')
    maps = BaseSegDataset(data_root=str(root), ann_file='names.txt', metainfo=dict(classes=['a']), pipeline=[])
    assert maps.get_data_info(0)['img_path'].endswith('cat/000.jpg')
