"""What mmcae.CheckpointHook refuses; what it does is in tests/test_faults/."""

import os
import signal
from types import SimpleNamespace

import pytest
import torch
from mmengine.fileio import FileClient, LocalBackend, register_backend
from mmengine.logging import MessageHub
from mmengine.runner import EpochBasedTrainLoop as MMEngineEpochBasedTrainLoop
from torch import nn

from mmcae.engine import CheckpointHook, EpochBasedTrainLoop, SingleDeviceStrategy
from mmcae.utils.errors import CheckpointError, ConfigError


@pytest.fixture
def runner(tmp_path):
    """A runner as far as the start of a training needs it."""

    def make(loop):
        logger = SimpleNamespace(info=lambda *_: None)
        loop = loop.__new__(loop)
        state = dict(work_dir=str(tmp_path), epoch=1, iter=6, model=nn.Linear(1, 1))
        return SimpleNamespace(train_loop=loop, logger=logger, message_hub=MessageHub('test'), **state)

    return make


def test_a_runner_of_mmengine_resumes_from_the_newest_checkpoint(tmp_path):
    """Without tools/train.py. mmengine itself would take the name in last_checkpoint, as if it was relative to the present folder."""
    for name, written in (('epoch_1.pth', 10.0), ('recovery_8.pth', 20.0)):
        torch.save(dict(meta=dict(iter=1, epoch=1, mmcae=dict(written=written)), optimizer={}, state_dict={}), tmp_path / name)
    (tmp_path / 'last_checkpoint').write_text('epoch_1.pth')
    newest = str(tmp_path / 'recovery_8.pth')
    for settings, expected in (({}, newest), (dict(_load_from='x'), 'x'), (dict(_resume=False), None), (dict(_has_loaded=True), None)):
        runner = SimpleNamespace(**dict(work_dir=str(tmp_path), _resume=True, _load_from=None, _has_loaded=False) | settings)
        CheckpointHook().before_run(runner)
        assert runner._load_from == expected


def test_a_flexible_runner_of_mmengine_resumes_from_what_is_recorded(tmp_path):
    strategy = SingleDeviceStrategy.__new__(SingleDeviceStrategy)
    strategy._work_dir = str(tmp_path)
    (tmp_path / 'epoch_1.pth').touch()
    assert strategy.located('epoch_1.pth') == str(tmp_path / 'epoch_1.pth')
    assert strategy.located('epoch_2.pth') == 'epoch_2.pth' and strategy.located('/x/epoch_1.pth') == '/x/epoch_1.pth'


@pytest.mark.parametrize(
    ('settings', 'message'),
    [(dict(max_keep_ckpts=1), 'set 2 or more'), (dict(recovery_interval=0), 'positive'), (dict(changed_data='stop'), "'continue'")],
)
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


@pytest.mark.parametrize('metrics', ['accuracy', ['accuracy', 'f1']])
def test_the_best_checkpoint_of_a_copied_run_is_that_of_the_copy(runner, tmp_path, metrics):
    """mmengine deletes it when a better one comes, by the path that is in the checkpoint that the run resumed from."""
    names = dict(best_ckpt='best_accuracy_epoch_1.pth')
    if metrics != 'accuracy':
        names = {f'best_ckpt_{metric}': f'best_{metric}_epoch_1.pth' for metric in metrics}
    runner, hook = runner(EpochBasedTrainLoop), CheckpointHook(save_best=metrics, rule='greater')
    for key, name in {**names, 'last_ckpt': 'epoch_1.pth'}.items():
        runner.message_hub.update_info(key, f'/original/{name}')
    hook.before_train(runner)
    hook.restore_handlers()
    best = [hook.best_ckpt_path] if metrics == 'accuracy' else list(hook.best_ckpt_path_dict.values())
    assert best == [f'{tmp_path}/{name}' for name in names.values()]

    saved = dict(meta={}, message_hub=runner.message_hub.state_dict())
    runner.train_dataloader, runner.max_iters = [], 6
    runner.train_loop.__class__ = MMEngineEpochBasedTrainLoop
    hook.before_save_checkpoint(runner, saved)
    info = saved['message_hub']['runtime_info']
    assert {key: info[key] for key in names} == names and info['last_ckpt'] == 'epoch_1.pth'
    assert runner.message_hub.get_info('last_ckpt') == f'{tmp_path}/epoch_1.pth'


class Store(LocalBackend):
    """A remote store: `store://a` is the folder ROOT/a."""

    root = ''

    def path(self, name):
        return os.path.join(self.root, name.removeprefix('store://'))

    def exists(self, filepath):
        return super().exists(self.path(filepath))

    def isdir(self, filepath):
        return super().isdir(self.path(filepath))

    def remove(self, filepath):
        super().remove(self.path(filepath))

    def list_dir_or_file(self, dir_path, **options):
        return super().list_dir_or_file(self.path(dir_path), **options)


@pytest.mark.parametrize('remote', [False, True])
def test_old_recovery_checkpoints_are_deleted_and_the_newest_is_recorded(runner, tmp_path, monkeypatch, remote):
    """By name alone in the work dir itself."""
    for register in (register_backend, FileClient.register_backend):
        register('store', Store, prefixes='store', force=True)
    monkeypatch.setattr(Store, 'root', str(tmp_path))
    folder = tmp_path / 'runs' / tmp_path.name if remote else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    for iteration in (4, 10, 6):
        (folder / f'recovery_{iteration}.pth').touch()
        os.utime(folder / f'recovery_{iteration}.pth', (iteration, iteration))
    (folder / 'recovery_notes.txt').touch()
    runner, hook = runner(EpochBasedTrainLoop), CheckpointHook(out_dir='store://runs' if remote else None)
    runner.save_checkpoint = lambda out_dir, name, **_: (folder / name).touch()
    hook.before_train(runner)
    hook.restore_handlers()
    runner.iter = 11
    hook.save_recovery(runner)
    assert sorted(path.name for path in folder.glob('recovery_*')) == ['recovery_10.pth', 'recovery_12.pth', 'recovery_notes.txt']
    recorded = (tmp_path / 'last_checkpoint').read_text()
    assert recorded == (f'store://runs/{tmp_path.name}/recovery_12.pth' if remote else 'recovery_12.pth')
    hook.delete_recoveries(keep=0)
    assert [path.name for path in folder.glob('recovery_*')] == ['recovery_notes.txt']


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


@pytest.mark.parametrize('resume', [True, False])
def test_a_checkpoint_of_another_method(tiny_cae, resume):
    """Refused on resuming and as load_from; one that does not say its method is left to mmengine."""
    runner = SimpleNamespace(model=tiny_cae(), _load_from='x.pth', _resume=resume)
    with pytest.raises(ConfigError, match='x.pth is of CAEv2, the model of CAE: start from its encoder alone, by init_cfg'):
        CheckpointHook().after_load_checkpoint(runner, dict(meta=dict(method=dict(name='CAEv2'))))
    runner._resume = False
    for meta in ({}, dict(meta={}), dict(meta=dict(method=dict(name='CAE')))):
        CheckpointHook().after_load_checkpoint(runner, meta)
    runner.model = nn.Linear(1, 1)
    CheckpointHook().after_load_checkpoint(runner, dict(meta=dict(method=dict(name='CAEv2'))))


@pytest.mark.parametrize(('device', 'exchanges', 'stopped_after'), [('cpu', [1, 2, 3], 3), ('cuda', [10], 10)])
def test_processes_that_talk_through_gpus_ask_each_other_less_often(monkeypatch, device, exchanges, stopped_after):
    """Another process gets a signal during the third iteration."""
    asked = []

    def all_reduce(number, op):
        asked.append(runner.iter + 1)
        number.fill_(signal.SIGUSR1 if runner.iter >= 2 else 0)

    monkeypatch.setattr('mmcae.engine.hooks.checkpoint.get_comm_device', lambda: torch.device(device))
    monkeypatch.setattr('mmcae.engine.hooks.checkpoint.all_reduce', all_reduce)
    hook, runner = CheckpointHook(), SimpleNamespace(world_size=2, iter=0)
    while not hook.signal_of_all(runner):
        runner.iter += 1
    assert (asked, runner.iter + 1) == (exchanges, stopped_after)
    runner.iter += 1
    assert hook.signal_of_all(runner) == signal.SIGUSR1  # until the update that follows
