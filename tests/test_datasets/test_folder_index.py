"""Finding images: which files, in which order, how links and hidden names are treated, and what the remembered index notices."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from mmcae.datasets import folder_index as module
from mmcae.datasets.folder_index import FolderIndex, build_index, folder_index
from mmcae.utils.errors import DataError

SUFFIXES = ('.jpg', '.png')


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def age(root):
    """Let all folders have changed long ago, so that the index trusts their times."""
    for folder, _, _ in os.walk(root):
        os.utime(folder, (1e9, 1e9))


def paths(index):
    return [index[i] for i in range(len(index))]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp('cache')
    monkeypatch.setenv('MMCAE_CACHE', str(folder))
    return folder


def test_every_image_below_in_the_order_of_the_names(tmp_path):
    touch(tmp_path, 'b/2.PNG', 'b/10.jpg', 'a/c/d/1.Jpg', 'z.png', 'a.png', 'a/ä b.png', 'a/notes.txt', 'b/readme', 'b/x.jpg.txt')
    index = build_index(str(tmp_path), SUFFIXES)
    assert paths(index) == ['a.png', 'z.png', 'a/ä b.png', 'a/c/d/1.Jpg', 'b/10.jpg', 'b/2.PNG']
    assert index.folders == 5 and index.facts['other'] == {'.txt': 2, 'no suffix': 1}


def test_the_order_does_not_depend_on_the_file_system(tmp_path, monkeypatch):
    touch(tmp_path, *(f'{a}/{b}.png' for a in 'xyz' for b in range(9)))
    expected, scandir = paths(build_index(str(tmp_path), SUFFIXES)), os.scandir

    class Shuffled:
        def __init__(self, path):
            self.entries = list(scandir(path))
            np.random.default_rng(len(self.entries)).shuffle(self.entries)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, 'scandir', Shuffled)
    assert paths(build_index(str(tmp_path), SUFFIXES)) == expected


def test_hidden_names_are_left_out_and_counted(tmp_path):
    touch(tmp_path, '.hidden.png', '.git/a.png', '._a.jpg', 'a.jpg')
    index = build_index(str(tmp_path), SUFFIXES)
    assert paths(index) == ['a.jpg'] and index.facts['hidden'] == 3


def test_names_that_are_no_utf8(tmp_path):
    name = b'caf\xe9.jpg'
    open(os.path.join(os.fsencode(tmp_path), name), 'w').close()
    assert os.fsencode(build_index(str(tmp_path), SUFFIXES)[0]) == name


def test_links_are_followed_once(tmp_path):
    inside, outside = touch(tmp_path / 'in', 'real/1.png', 'zoo/9.png'), touch(tmp_path / 'out', 'o.png', 'deep/p.png')
    (inside / 'a-loop').symlink_to(inside)
    (inside / 'real' / 'up').symlink_to('..')
    (inside / 'b-again').symlink_to('real')  # sorts before the real one and still comes after it
    (inside / 'elsewhere').symlink_to(outside)
    (outside / 'back').symlink_to(inside / 'zoo')
    (outside / 'twice').symlink_to(outside / 'deep')
    index = build_index(str(inside), SUFFIXES)
    assert paths(index) == ['real/1.png', 'zoo/9.png', 'elsewhere/o.png', 'elsewhere/deep/p.png']
    assert index.facts['repeated'] == 5


def test_linked_files_are_taken_once_and_broken_links_stay(tmp_path):
    inside, outside = touch(tmp_path / 'in', 'sub/1.png'), touch(tmp_path / 'out', 'o.png', '.mmcae-store', 'blob')
    for name, target in {
        'again.png': inside / 'sub/1.png',
        'first.png': outside / 'o.png',
        'second.png': outside / 'o.png',
        'broken.png': inside / 'sub/2.png',
        'blob.png': outside / 'blob',
    }.items():
        (inside / name).symlink_to(target)
    index = build_index(str(inside), SUFFIXES)
    assert paths(index) == ['sub/1.png', 'blob.png', 'broken.png', 'first.png'] and index.facts['repeated'] == 2


def test_a_pipe_is_no_image(tmp_path):
    touch(tmp_path, 'a.png')
    os.mkfifo(tmp_path / 'b.png')
    index = build_index(str(tmp_path), SUFFIXES)
    assert paths(index) == ['a.png'] and index.facts['other'] == {'no regular file': 1}


def rebuilt(monkeypatch, root, suffixes=SUFFIXES):
    """Whether asking for the index looks through the folder."""
    calls = []
    monkeypatch.setattr(module, 'build_index', lambda *a: calls.append(a) or build_index(*a))
    index = folder_index(str(root), suffixes)
    monkeypatch.undo()
    return bool(calls), paths(index)


def test_the_second_time_it_is_remembered(tmp_path, monkeypatch):
    touch(tmp_path, 'a/1.png', '2.png')
    age(tmp_path)
    assert rebuilt(monkeypatch, tmp_path) == (True, ['2.png', 'a/1.png'])
    assert (tmp_path / '.mmcae').is_dir()
    assert rebuilt(monkeypatch, tmp_path) == (False, ['2.png', 'a/1.png'])
    assert rebuilt(monkeypatch, tmp_path, ['.PNG'])[0]  # other endings, another index
    assert not rebuilt(monkeypatch, tmp_path, ['.png'])[0] and not rebuilt(monkeypatch, tmp_path)[0]


@pytest.mark.parametrize('change', ['new file', 'removed', 'renamed', 'new folder', 'folder removed', 'link'])
def test_changes_are_noticed(tmp_path, monkeypatch, change):
    root = touch(tmp_path / 'data', 'a/1.png', 'a/2.png', 'b/3.png')
    (root / 'linked').symlink_to(touch(tmp_path / 'other', 'o.png'))
    age(tmp_path)
    rebuilt(monkeypatch, root)
    assert not rebuilt(monkeypatch, root)[0]
    if change == 'new file':
        touch(root, 'a/0.png')
    elif change == 'removed':
        (root / 'a/1.png').unlink()
    elif change == 'renamed':
        (root / 'a/1.png').rename(root / 'a/9.png')
    elif change == 'new folder':
        touch(root, 'b/c/4.png')
    elif change == 'folder removed':
        (root / 'b/3.png').unlink()
        (root / 'b').rmdir()
    else:
        touch(tmp_path / 'other', 'p.png')
    anew, found = rebuilt(monkeypatch, root)
    assert anew and found == paths(build_index(str(root), SUFFIXES))


def test_a_folder_that_changed_just_now_is_looked_at_again(tmp_path, monkeypatch):
    """Its clock may not tell a second change from the first."""
    touch(tmp_path, 'a.png')
    assert rebuilt(monkeypatch, tmp_path)[0] and rebuilt(monkeypatch, tmp_path)[0]
    age(tmp_path)
    assert rebuilt(monkeypatch, tmp_path)[0] and not rebuilt(monkeypatch, tmp_path)[0]


def test_a_folder_that_cannot_be_written_has_its_index_in_the_cache(tmp_path, monkeypatch, cache):
    touch(tmp_path, 'a.png', '.mmcae')  # a file where the index's folder would be
    age(tmp_path)
    monkeypatch.undo()
    monkeypatch.setenv('MMCAE_CACHE', str(cache))
    folder_index(str(tmp_path), SUFFIXES)
    assert [path.suffix for path in sorted((cache / 'indexes').iterdir())] == ['.index', '.lock']


def test_nowhere_to_write_names_the_remedy(tmp_path, monkeypatch):
    touch(tmp_path, 'a.png', '.mmcae', 'file')
    monkeypatch.setenv('MMCAE_CACHE', str(tmp_path / 'file'))
    with pytest.raises(DataError, match='name a folder that can be written in the environment variable MMCAE_CACHE'):
        folder_index(str(tmp_path), SUFFIXES)


@pytest.mark.parametrize('damage', [b'', b'{}\n', b'not json\n', None])
def test_a_damaged_index_is_built_anew(tmp_path, monkeypatch, damage):
    touch(tmp_path, 'a.png', 'b.png')
    age(tmp_path)
    rebuilt(monkeypatch, tmp_path)
    (file,) = (tmp_path / '.mmcae').glob('*.index')
    file.write_bytes(file.read_bytes()[:-8] if damage is None else damage)
    assert rebuilt(monkeypatch, tmp_path) == (True, ['a.png', 'b.png'])


def test_the_file_is_mapped_and_not_copied(tmp_path):
    touch(tmp_path, *(f'{i}.png' for i in range(50)))
    index = folder_index(str(tmp_path), SUFFIXES)
    assert isinstance(index.arrays['names'].base, np.memmap) or isinstance(index.arrays['names'], np.memmap)
    assert paths(pickle.loads(pickle.dumps(index))) == paths(index) and FolderIndex.load(tmp_path / 'absent') is None


def test_processes_at_the_same_time_build_it_once(tmp_path):
    touch(tmp_path, *(f'{i}/{j}.png' for i in range(20) for j in range(20)))
    age(tmp_path)
    code = f'from mmcae.datasets.folder_index import folder_index; print(len(folder_index({str(tmp_path)!r}, (".png",))))'
    processes = [
        subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert all(output.strip().endswith('400') for output in outputs), outputs
    assert sum('indexed in' in output for output in outputs) == 1, outputs
