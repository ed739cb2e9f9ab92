"""Unreadable files are counted and listed, and stop the run when they are too many; tests/test_tools/test_own_images.py has whole runs."""

from types import SimpleNamespace

import pytest
from mmengine.logging import MMLogger
from mmpretrain.structures import DataSample

from mmcae.datasets.sources.bad_files import ReplaceBadFiles
from mmcae.engine.checks.bad_files import BadFilesCheck, read_list
from mmcae.utils.errors import ConfigError, DataError


class Images(ReplaceBadFiles):
    def __len__(self):
        return 100


@pytest.fixture
def runner(tmp_path):
    return SimpleNamespace(
        work_dir=str(tmp_path),
        _resume=False,
        iter=0,
        train_dataloader=SimpleNamespace(dataset=Images()),
        logger=MMLogger.get_instance('bad_files'),
    )


def batch(*bad):
    return dict(data_samples=[DataSample(metainfo=dict(img_path='x')), DataSample(metainfo=dict(bad_files=[(b, 'no image') for b in bad]))])


def feed(check, runner, *batches):
    for data in batches:
        check.after_train_iter(runner, data, None)
        runner.iter += 1


def test_files_are_counted_once_and_listed(runner, tmp_path):
    check = BadFilesCheck(max_share=0.03, interval=2)
    check.before_split(runner, 'train')
    feed(check, runner, batch('b.png'), batch(), batch('a.png', 'b.png'))
    assert (tmp_path / 'bad_files.txt').read_text() == 'b.png\tno image\n'  # the second exchange is due
    check.after_train_epoch(runner)
    assert (tmp_path / 'bad_files.txt').read_text() == 'a.png\tno image\nb.png\tno image\n'
    feed(check, runner, batch('a.png'), dict(inputs=1))
    check.after_train_epoch(runner)
    assert set(check.known) == {'a.png', 'b.png'}


@pytest.mark.parametrize(('share', 'allowed'), [(0.03, 3), (0, 0), (0.005, 0), (0.01, 1)])
def test_max_share(runner, tmp_path, share, allowed):
    check = BadFilesCheck(max_share=share, interval=1)
    check.before_split(runner, 'train')
    feed(check, runner, *(batch(f'{i}.png') for i in range(allowed)))
    with pytest.raises(DataError, match=rf'{allowed + 1} of 100 files .* could not be read, more than max_bad_files={share:g}'):
        feed(check, runner, batch('more.png'))
    assert len(read_list(tmp_path / 'bad_files.txt')) == allowed + 1  # the list is whole when it is needed


def test_share_of_1_never_stops(runner):
    check = BadFilesCheck(max_share=1.0, interval=1)
    check.before_split(runner, 'train')
    feed(check, runner, batch(*(f'{i}.png' for i in range(100))))


def test_resumed_run_continues_the_list(runner, tmp_path):
    check = BadFilesCheck(interval=1)
    check.before_split(runner, 'train')
    feed(check, runner, batch('a.png'))
    runner._resume = True
    resumed = BadFilesCheck(interval=1)
    resumed.before_split(runner, 'train')
    assert resumed.known == {'a.png': 'no image'}
    with pytest.raises(DataError):
        feed(resumed, runner, batch('b.png'))
    runner._resume = False
    BadFilesCheck().before_split(runner, 'train')
    assert not (tmp_path / 'bad_files.txt').exists()


def test_files_of_other_processes_are_counted(runner, monkeypatch):
    monkeypatch.setattr('mmcae.engine.checks.bad_files.all_gather_object', lambda own: [own, {'other.png': 'x'}])
    check = BadFilesCheck(max_share=0.01, interval=1)
    check.before_split(runner, 'train')
    with pytest.raises(DataError, match='2 of 100 files'):
        feed(check, runner, batch('own.png'))


@pytest.mark.parametrize(
    'settings', [dict(max_share=-1), dict(max_share=1.5), dict(max_share='1%'), dict(max_share=True), dict(interval=0)]
)
def test_invalid_settings(settings):
    with pytest.raises(ConfigError):
        BadFilesCheck(**settings)
