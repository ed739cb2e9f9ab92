"""Finding images: which files, in which order, how links and hidden names are treated, and what the remembered index notices."""

import errno
import os
import pathlib
import pickle
import subprocess
import time

import numpy as np
import pytest

from mmcae.datasets.sources import folder_index as module
from mmcae.datasets.sources import folder_walk
from mmcae.datasets.sources.folder_index import FolderIndex, build_index, folder_index
from mmcae.utils.errors import DataError, StorageError

SUFFIXES = ('.jpg', '.png')


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


@pytest.fixture
def aged(monkeypatch):
    """Folders that changed a few milliseconds ago changed long ago, so that an index trusts their times: `aged()` after a change."""
    monkeypatch.setattr(folder_walk, 'CLOCK_TICK', 1e7)
    return lambda: time.sleep(0.03)


def paths(index):
    return [index[i] for i in range(len(index))]


@pytest.fixture(autouse=True)
def indexes(tmp_path_factory, monkeypatch):
    """Where indexes are kept."""
    folder = tmp_path_factory.mktemp('cache')
    monkeypatch.setenv('MMCAE_CACHE', str(folder))
    return folder / 'indexes'


@pytest.fixture
def log(monkeypatch):
    lines = []
    monkeypatch.setattr(module, 'print_log', lambda line, *_: lines.append(line))
    return lines


def everything(root):
    """Names, contents and times of a tree."""
    return {
        path.relative_to(root): (path.lstat().st_mtime_ns, path.lstat().st_ctime_ns, path.read_bytes() if path.is_file() else None)
        for path in [root, *root.rglob('*')]
    }


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
    with monkeypatch.context() as patch:
        patch.setattr(module, 'build_index', lambda *a: calls.append(a) or build_index(*a))
        index = folder_index(str(root), suffixes)
    return bool(calls), paths(index)


def test_the_second_time_it_is_remembered(tmp_path, monkeypatch, aged, indexes):
    touch(tmp_path, 'a/1.png', '2.png')
    aged()
    before = everything(tmp_path)
    assert rebuilt(monkeypatch, tmp_path) == (True, ['2.png', 'a/1.png'])
    assert sorted(path.suffix for path in indexes.iterdir()) == ['.index', '.lock']
    assert rebuilt(monkeypatch, tmp_path) == (False, ['2.png', 'a/1.png'])
    assert rebuilt(monkeypatch, tmp_path, ['.PNG'])[0]  # other endings, another index
    assert not rebuilt(monkeypatch, tmp_path, ['.png'])[0] and not rebuilt(monkeypatch, tmp_path)[0]
    assert everything(tmp_path) == before


@pytest.mark.parametrize('change', ['new file', 'removed', 'renamed', 'new folder', 'folder removed', 'link', 'time set back'])
def test_changes_are_noticed(tmp_path, monkeypatch, change, aged):
    root = touch(tmp_path / 'data', 'a/1.png', 'a/2.png', 'b/3.png')
    (root / 'linked').symlink_to(touch(tmp_path / 'other', 'o.png'))
    aged()
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
    elif change == 'link':
        touch(tmp_path / 'other', 'p.png')
    else:  # as archives and copies do
        before = (root / 'a').stat()
        touch(root, 'a/0.png')
        os.utime(root / 'a', ns=(before.st_atime_ns, before.st_mtime_ns))
    anew, found = rebuilt(monkeypatch, root)
    assert anew and found == paths(build_index(str(root), SUFFIXES))


def test_a_folder_that_changed_just_now_is_looked_at_again(tmp_path, monkeypatch, indexes):
    """Its clock may not tell a second change from the first."""
    touch(tmp_path, 'a.png')
    assert rebuilt(monkeypatch, tmp_path)[0] and rebuilt(monkeypatch, tmp_path)[0]
    assert len(list(indexes.glob('*.index'))) == 1  # the same content, the same file
    monkeypatch.setattr(folder_walk, 'CLOCK_TICK', -1)
    assert rebuilt(monkeypatch, tmp_path)[0] and not rebuilt(monkeypatch, tmp_path)[0]


def test_an_index_in_use_is_never_written_again(tmp_path, monkeypatch, aged, indexes):
    """A job that has it mapped on another machine would die of SIGBUS."""
    root = touch(tmp_path / 'data', 'a.png', 'b.png')
    aged()
    used = folder_index(str(root), SUFFIXES)
    (file,) = indexes.glob('*.index')
    before = file.read_bytes(), file.stat().st_ino
    touch(root, 'c.png')
    aged()
    assert rebuilt(monkeypatch, root) == (True, ['a.png', 'b.png', 'c.png'])
    assert (file.read_bytes(), file.stat().st_ino) == before and paths(used) == ['a.png', 'b.png']
    assert len(list(indexes.glob('*.index'))) == 2


def test_machines_with_other_folders_of_one_name_share_a_cache(tmp_path, monkeypatch, aged):
    """Each finds its own index, whichever was used last."""
    first = touch(tmp_path / 'first', 'a.png')
    aged()
    second = touch(tmp_path / 'second', 'b.png')
    aged()
    root = tmp_path / 'data'
    monkeypatch.setattr(os.path, 'realpath', lambda path, **_: str(path))  # a link stands for what else is a folder of each machine
    seen = []
    for folder in (first, second, first, second):
        root.unlink(missing_ok=True)
        root.symlink_to(folder)
        seen.append(rebuilt(monkeypatch, root))
    assert seen == [(True, ['a.png']), (True, ['b.png']), (False, ['a.png']), (False, ['b.png'])]


def test_a_link_that_leads_elsewhere_is_another_folder(tmp_path, monkeypatch):
    """Also where both trees were made in the same moment."""
    monkeypatch.setattr(folder_walk, 'CLOCK_TICK', -1)
    root = tmp_path / 'data'
    for name in 'ab':
        root.unlink(missing_ok=True)
        root.symlink_to(touch(tmp_path / name, f'{name}.png'))
        os.utime(tmp_path / name, (1e9, 1e9))
        assert rebuilt(monkeypatch, root) == (True, [f'{name}.png'])


def test_indexes_that_nobody_wants_are_removed(tmp_path, indexes):
    for name in ('one', 'two', 'three'):
        folder_index(str(touch(tmp_path / name, 'a.png')), SUFFIXES)
        for file in indexes.glob('*.index'):
            os.utime(file, (file.stat().st_mtime - 60 * 24 * 3600,) * 2)
    assert len(list(indexes.glob('*.index'))) == 2  # the first has been unused for 120 days when the third is made


@pytest.mark.parametrize('cache', ['file', '/proc/nowhere', None])
def test_a_cache_that_cannot_be_written_costs_time_and_is_said(tmp_path, monkeypatch, log, cache):
    (tmp_path / 'file').touch()
    root = touch(tmp_path / 'data', 'a.png')
    if cache:
        monkeypatch.setenv('MMCAE_CACHE', str(tmp_path / cache))
    else:  # a user without a home

        def homeless():
            raise RuntimeError('Could not determine home directory.')

        monkeypatch.delenv('MMCAE_CACHE')
        monkeypatch.setattr(pathlib.Path, 'home', homeless)
    before = everything(root)
    assert paths(folder_index(str(root), SUFFIXES)) == ['a.png'] and everything(root) == before
    assert f'The index of {root} cannot be kept (' in log[0] and 'environment variable MMCAE_CACHE' in log[0]
    assert '1 images in 1 folders' in log[1] and 'in memory' in log[1]


def test_a_full_disk_costs_time_and_is_said(tmp_path, monkeypatch, log):
    def full(*_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    assert paths(folder_index(str(touch(tmp_path, 'a.png')), SUFFIXES)) == ['a.png']
    assert 'cannot be kept' in log[0] and 'No space left' in log[0]


def test_what_earlier_versions_left_is_no_image_and_its_removal_is_offered(tmp_path, monkeypatch, aged, log):
    root = touch(tmp_path / "my 'data'", 'a/1.png', '.mmcae/x.index', '.mmcae/old.png', 'a/.mmcae/y.index')
    aged()
    for _ in range(2):  # by looking, and by the index
        assert rebuilt(monkeypatch, root)[1] == ['a/1.png']
        offers = [line for line in log if 'Remove it by: ' in line]
        assert [line.split(' is left from an earlier version')[0] for line in offers] == [f'{root}/.mmcae', f'{root}/a/.mmcae']
        log.clear()
    for line in offers:
        subprocess.run(line.split('Remove it by: ')[1], shell=True, check=True)
    folder_index(str(root), SUFFIXES)
    assert sorted(path.name for path in root.rglob('*')) == ['1.png', 'a'] and not any('Remove' in line for line in log)


@pytest.mark.parametrize('damage', [b'', b'{}\n', b'not json\n', None])
def test_a_damaged_index_is_built_anew(tmp_path, monkeypatch, damage, aged, indexes):
    touch(tmp_path, 'a.png', 'b.png')
    aged()
    rebuilt(monkeypatch, tmp_path)
    (file,) = indexes.glob('*.index')
    file.write_bytes(file.read_bytes()[:-8] if damage is None else damage)
    assert rebuilt(monkeypatch, tmp_path) == (True, ['a.png', 'b.png'])
    assert not rebuilt(monkeypatch, tmp_path)[0]


def test_a_server_that_does_not_answer_for_a_moment(tmp_path, monkeypatch):
    touch(tmp_path, 'a/1.png', 'b/2.png')
    expected, scandir, tries = paths(build_index(str(tmp_path), SUFFIXES)), os.scandir, []

    def flaky(path):
        tries.append(path)
        if tries.count(path) < 3:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)
        return scandir(path)

    monkeypatch.setattr(os, 'scandir', flaky)
    assert paths(build_index(str(tmp_path), SUFFIXES)) == expected and len(tries) == 9
    monkeypatch.setenv('MMCAE_RETRY_SECONDS', '0')
    tries.clear()
    with pytest.raises(StorageError, match=rf'{tmp_path} cannot be read: Stale file handle \(ESTALE\)'):
        build_index(str(tmp_path), SUFFIXES)


def test_a_folder_that_may_not_be_listed_is_named(tmp_path, monkeypatch):
    def forbidden(path):
        raise PermissionError(errno.EACCES, 'Permission denied', path)

    monkeypatch.setattr(os, 'scandir', forbidden)
    with pytest.raises(DataError, match=rf'{tmp_path} cannot be listed \(Permission denied\)'):
        build_index(str(tmp_path), SUFFIXES)


def test_the_file_is_mapped_and_not_copied(tmp_path):
    touch(tmp_path, *(f'{i}.png' for i in range(50)))
    index = folder_index(str(tmp_path), SUFFIXES)
    assert isinstance(index.arrays['names'].base, np.memmap) or isinstance(index.arrays['names'], np.memmap)
    assert paths(pickle.loads(pickle.dumps(index))) == paths(index) and FolderIndex.load(tmp_path / 'absent') is None


def test_processes_at_the_same_time_build_it_once(tmp_path, aged, indexes):
    root = touch(tmp_path / 'data', *(f'{i}/{j}.png' for i in range(20) for j in range(20)))
    aged()
    children = []
    for _ in range(3):
        children.append(os.fork())
        if not children[-1]:
            try:
                module.build_index = lambda *a: (tmp_path / f'{os.getpid()}').touch() or build_index(*a)
                assert len(folder_index(str(root), SUFFIXES)) == 400
                os._exit(0)
            finally:
                os._exit(1)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert sum((tmp_path / str(child)).exists() for child in children) == 1 and len(list(indexes.glob('*.index'))) == 1
