"""Counting, listing and stopping: with the hook alone, and by tools/train.py on a folder with damaged files."""

from types import SimpleNamespace

import pytest
from mmengine.logging import MMLogger
from mmpretrain.structures import DataSample

from mmcae.engine import ReportBadFiles
from mmcae.engine.hooks.bad_files import read_list
from mmcae.utils.errors import ConfigError, DataError


@pytest.fixture
def runner(tmp_path):
    return SimpleNamespace(
        work_dir=str(tmp_path),
        _resume=False,
        iter=0,
        train_dataloader=SimpleNamespace(dataset=range(100)),
        logger=MMLogger.get_instance('bad_files'),
    )


def batch(*bad):
    return dict(data_samples=[DataSample(metainfo=dict(img_path='x')), DataSample(metainfo=dict(bad_files=[(b, 'no image') for b in bad]))])


def feed(hook, runner, *batches):
    for data in batches:
        hook.after_train_iter(runner, runner.iter, data)
        runner.iter += 1


def test_files_are_counted_once_and_listed(runner, tmp_path):
    hook = ReportBadFiles(max_share=0.03, interval=2)
    hook.before_train(runner)
    feed(hook, runner, batch('b.png'), batch(), batch('a.png', 'b.png'))
    assert (tmp_path / 'bad_files.txt').read_text() == 'b.png\tno image\n'  # the second exchange is due
    hook.after_train_epoch(runner)
    assert (tmp_path / 'bad_files.txt').read_text() == 'a.png\tno image\nb.png\tno image\n'
    feed(hook, runner, batch('a.png'), dict(inputs=1))
    hook.after_train_epoch(runner)
    assert set(hook.known) == {'a.png', 'b.png'}


@pytest.mark.parametrize(('share', 'allowed'), [(0.03, 3), (0, 0), (0.005, 0), (0.01, 1)])
def test_too_many_stop_the_run(runner, tmp_path, share, allowed):
    hook = ReportBadFiles(max_share=share, interval=1)
    hook.before_train(runner)
    feed(hook, runner, *(batch(f'{i}.png') for i in range(allowed)))
    with pytest.raises(DataError, match=rf'{allowed + 1} of 100 files .* could not be read, more than max_bad_files={share:g}'):
        feed(hook, runner, batch('more.png'))
    assert len(read_list(tmp_path / 'bad_files.txt')) == allowed + 1  # the list is whole when it is needed


def test_all_may_be_bad(runner):
    hook = ReportBadFiles(max_share=1.0, interval=1)
    hook.before_train(runner)
    feed(hook, runner, batch(*(f'{i}.png' for i in range(100))))


def test_a_resumed_run_goes_on_with_the_list_and_a_new_one_without(runner, tmp_path):
    hook = ReportBadFiles(interval=1)
    hook.before_train(runner)
    feed(hook, runner, batch('a.png'))
    runner._resume = True
    resumed = ReportBadFiles(interval=1)
    resumed.before_train(runner)
    assert resumed.known == {'a.png': 'no image'}
    with pytest.raises(DataError):
        feed(resumed, runner, batch('b.png'))
    runner._resume = False
    ReportBadFiles().before_train(runner)
    assert not (tmp_path / 'bad_files.txt').exists()


def test_what_other_processes_found_counts(runner, monkeypatch):
    monkeypatch.setattr('mmcae.engine.hooks.bad_files.all_gather_object', lambda own: [own, {'other.png': 'x'}])
    hook = ReportBadFiles(max_share=0.01, interval=1)
    hook.before_train(runner)
    with pytest.raises(DataError, match='2 of 100 files'):
        feed(hook, runner, batch('own.png'))


@pytest.mark.parametrize(
    'settings', [dict(max_share=-1), dict(max_share=1.5), dict(max_share='1%'), dict(max_share=True), dict(interval=0)]
)
def test_impossible_settings(settings):
    with pytest.raises(ConfigError):
        ReportBadFiles(**settings)
