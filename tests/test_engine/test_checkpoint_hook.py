"""What mmcae.CheckpointHook refuses; what it does is in tests/test_faults/."""

import signal
from types import SimpleNamespace

import pytest
from mmengine.runner import EpochBasedTrainLoop as MMEngineEpochBasedTrainLoop

from mmcae.engine import CheckpointHook, EpochBasedTrainLoop
from mmcae.utils.errors import CheckpointError, ConfigError


@pytest.fixture
def runner(tmp_path):
    """A runner as far as the start of a training needs it."""

    def make(loop):
        logger = SimpleNamespace(info=lambda *_: None)
        loop = loop.__new__(loop)
        return SimpleNamespace(work_dir=str(tmp_path), train_loop=loop, logger=logger, epoch=1, iter=6, message_hub=SimpleNamespace())

    return make


@pytest.mark.parametrize(('settings', 'message'), [(dict(max_keep_ckpts=1), 'set 2 or more'), (dict(recovery_interval=0), 'positive')])
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(ConfigError, match=message):
        CheckpointHook(**settings)


def test_a_loop_that_cannot_go_on_within_an_epoch(runner):
    with pytest.raises(ConfigError, match="train_cfg.type='mmcae.EpochBasedTrainLoop'"):
        CheckpointHook().before_train(runner(MMEngineEpochBasedTrainLoop))


def test_processes_that_loaded_different_checkpoints(runner, monkeypatch):
    monkeypatch.setattr('mmcae.engine.hooks.checkpoint.all_gather_object', lambda own: [own, (0, 4)])
    with pytest.raises(CheckpointError, match=r'different checkpoints.*\(0, 4\), \(1, 6\)'):
        CheckpointHook().before_train(runner(EpochBasedTrainLoop))


def test_files_are_written_whole_unless_the_config_names_another_way():
    assert CheckpointHook().backend_args == dict(backend='mmcae.atomic')
    assert CheckpointHook(backend_args=dict(backend='petrel')).backend_args == dict(backend='petrel')
    assert CheckpointHook(out_dir='s3://bucket/run').backend_args is None


def test_a_second_ctrl_c_ends_at_once(runner, monkeypatch):
    """But not one that a launcher passes on a moment later, and no second SIGTERM."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    hook, now = CheckpointHook(), [100.0]
    monkeypatch.setattr('time.monotonic', lambda: now[0])
    hook.before_train(runner(EpochBasedTrainLoop))
    signal.raise_signal(signal.SIGINT)
    now[0] += 1
    signal.raise_signal(signal.SIGINT)
    now[0] += 60
    signal.raise_signal(signal.SIGTERM)
    assert hook.signal == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert {number: signal.getsignal(number) for number in before} == before
