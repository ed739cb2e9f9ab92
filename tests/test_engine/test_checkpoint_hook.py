"""What mmcae.CheckpointHook refuses; what it does is in tests/test_faults/."""

import os
import signal
from types import SimpleNamespace

import pytest
import torch
from mmengine.fileio import FileClient, LocalBackend, register_backend
from mmengine.logging import MessageHub
from mmengine.runner import EpochBasedTrainLoop as MMEngineEpochBasedTrainLoop
from mmpretrain.models.selfsup import MAE
from torch import nn

from mmcae.engine import CheckpointHook, EpochBasedTrainLoop, SingleDeviceStrategy
from mmcae.utils.errors import CheckpointError, ConfigError


@pytest.fixture
def runner(tmp_path):
    """A runner as far as the start of a training needs it."""

    def make(loop):
        logger = SimpleNamespace(info=lambda *_: None, warning=lambda *_: None)
        loop = loop.__new__(loop)
        state = dict(work_dir=str(tmp_path), epoch=1, iter=6, model=nn.Linear(1, 1), val_loop=None, _resume=False, _load_from=None)
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
        (tmp_path / name).touch()
    hook.before_train(runner)
    hook.signals.restore()
    best = [hook.best_ckpt_path] if metrics == 'accuracy' else list(hook.best_ckpt_path_dict.values())
    assert best == [f'{tmp_path}/{name}' for name in names.values()]

    saved = dict(meta={}, message_hub=runner.message_hub.state_dict())
    runner.train_dataloader, runner.max_iters = [], 6
    runner.train_loop.__class__ = MMEngineEpochBasedTrainLoop
    hook.before_save_checkpoint(runner, saved)
    info = saved['message_hub']['runtime_info']
    assert {key: info[key] for key in names} == names and info['last_ckpt'] == 'epoch_1.pth'
    assert runner.message_hub.get_info('last_ckpt') == f'{tmp_path}/epoch_1.pth'


@pytest.fixture
def train(runner, tmp_path):
    """Runs a hook over iterations, after some of which it validates; what it saves are empty files."""

    def run(hook, iterations, scores=(), start=0, per_epoch=4, save=None, resumed=None, strategy=None, **info):
        state = runner(EpochBasedTrainLoop)
        state._resume, state._load_from, state.strategy = resumed is not None, resumed, strategy
        state.message_hub = MessageHub('test')
        for name, value in info.items():
            state.message_hub.update_info(name, value)
        state.iter, state.epoch, state.max_iters, state.world_size = start, start // per_epoch, start + iterations, 1
        state.train_dataloader, state.optim_wrapper = range(per_epoch), SimpleNamespace()
        state.save_checkpoint = save or (lambda out_dir, name=None, *_, filename=None, **__: (tmp_path / (name or filename)).touch())
        state.train_loop._max_iters = state.max_iters
        scores = dict(scores)
        hook.before_train(state)
        try:
            for _ in range(iterations):
                hook.after_train_iter(state, 0)
                state.iter += 1
                if state.iter % per_epoch == 0:
                    hook.after_train_epoch(state)
                    state.epoch += 1
                if state.iter in scores:
                    hook.after_val_epoch(state, scores[state.iter])
            hook.after_train(state)
        finally:
            hook.signals.restore()
        return state

    return run


def files(folder):
    return sorted(path.name for path in folder.glob('*.pth'))


def test_the_end_is_kept_where_a_recovery_checkpoint_alone_holds_it(train, tmp_path):
    every = dict(by_epoch=False, save_last=False, recovery_interval=2)
    train(CheckpointHook(interval=3, **every), 8)
    assert files(tmp_path) == ['iter_3.pth', 'iter_6.pth', 'recovery_4.pth', 'recovery_8.pth']
    train(CheckpointHook(interval=5, **every), 2, start=8)
    assert files(tmp_path) == ['iter_10.pth', 'iter_3.pth', 'iter_6.pth']


@pytest.mark.parametrize('name', ['epoch_2.pth', 'recovery_8.pth'])
def test_what_a_kill_at_the_end_has_left_out_is_done_on_resuming(train, tmp_path, name):
    """The model in one file, and no recovery checkpoint where an ordinary one holds the end."""
    written = []
    for file in {'recovery_6.pth', 'recovery_8.pth', name}:
        (tmp_path / file).touch()
    for resumed in (f'{tmp_path}/{name}', str(tmp_path.parent / name)):  # its own, and one of another folder
        (tmp_path.parent / name).touch()
        train(CheckpointHook(), 0, start=8, resumed=resumed, strategy=SimpleNamespace(consolidate=written.append))
    assert written == [f'{tmp_path}/{name}']
    assert files(tmp_path) == (['epoch_2.pth'] if name == 'epoch_2.pth' else ['recovery_6.pth', 'recovery_8.pth'])


def test_a_clock_that_is_set_back(runner, monkeypatch):
    """The newest checkpoint is found by when it was written."""
    state, hook, written = runner(MMEngineEpochBasedTrainLoop), CheckpointHook(), []
    state._resume, state.train_dataloader, state.max_iters = False, [], 6
    for seconds in (200.0, 100.0, 100.0, 300.0):
        monkeypatch.setattr('time.time', lambda now=seconds: now)
        saved = dict(meta={}, message_hub=dict(runtime_info={}))
        hook.before_save_checkpoint(state, saved)
        written.append(saved['meta']['mmcae']['written'])
        state._resume, hook = True, CheckpointHook()
        monkeypatch.setattr('mmcae.engine.hooks.checkpoint.reconcile', lambda *_: None)
        hook.after_load_checkpoint(state, saved)
    assert written == sorted(set(written)) and written[0] == 200 and written[-1] == 300


def test_a_checkpoint_of_weights_alone_is_none_to_go_on_from(train, tmp_path):
    hook = CheckpointHook(interval=3, by_epoch=False, save_optimizer=False)
    hook.signals.received = signal.SIGTERM
    with pytest.raises(SystemExit):
        train(hook, 1, start=2)
    assert files(tmp_path) == ['iter_3.pth', 'recovery_3.pth']


def test_steps_that_come_again_after_a_larger_batch_are_kept(train, tmp_path):
    """The run goes on from iteration 5 in place of 10; checkpoints of before have the same names."""
    for step in (8, 9, 10):
        (tmp_path / f'iter_{step}.pth').write_text('before')
    train(CheckpointHook(interval=1, by_epoch=False, max_keep_ckpts=6), 5, start=5, per_epoch=100, keep_ckpt_ids=[8, 9, 10])
    assert files(tmp_path) == [f'iter_{step}.pth' for step in (10, 6, 7, 8, 9)]
    train(CheckpointHook(interval=1, by_epoch=False, max_keep_ckpts=3), 2, start=10, per_epoch=100, keep_ckpt_ids=[8, 9, 10])
    assert files(tmp_path) == [f'iter_{step}.pth' for step in (10, 11, 12, 6, 7)]


@pytest.mark.parametrize('metrics', ['accuracy', ['accuracy', 'f1']])
def test_the_best_checkpoint_is_there_until_a_better_one_is(train, tmp_path, metrics):
    there = []

    def save(out_dir, name=None, *_, filename=None, **__):
        there.append([file for file in files(tmp_path) if file.startswith('best')])
        (tmp_path / (name or filename)).touch()

    scores = {4: dict(accuracy=1.0, f1=1.0), 8: dict(accuracy=0.5, f1=2.0), 12: dict(accuracy=3.0, f1=0.0)}
    hook = CheckpointHook(interval=9, by_epoch=True, save_last=False, save_best=metrics, rule='greater')
    state = train(hook, 12, scores, save=save)
    best = dict(best_accuracy_epoch_3=3.0) if metrics == 'accuracy' else dict(best_accuracy_epoch_3=3.0, best_f1_epoch_2=2.0)
    assert files(tmp_path) == [f'{name}.pth' for name in best]
    assert {name: value for name, value in state.message_hub.runtime_info.items() if 'score' in name}.keys() == {
        'best_score' if metrics == 'accuracy' else f'best_score_{metric}' for metric in ([''] if metrics == 'accuracy' else metrics)
    }
    assert all(there[1:]), 'there was none for a while'


def test_a_best_checkpoint_that_is_gone_is_not_waited_for(train, tmp_path):
    """Such as after going on from a checkpoint in another folder: nothing here would ever be better than what is there."""
    hook = CheckpointHook(interval=1, save_best='accuracy', rule='greater', published_keys=['state_dict'])
    hook._publish_model = lambda runner, path: tmp_path.joinpath(path).stat()
    state = train(hook, 8, {4: dict(accuracy=0.5), 8: dict(accuracy=0.4)}, best_ckpt='/original/best_epoch_3.pth', best_score=0.9)
    assert files(tmp_path) == ['best_accuracy_epoch_1.pth', 'epoch_1.pth', 'epoch_2.pth']
    assert state.message_hub.get_info('best_score') == 0.5


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
    runner.iter = 11
    (tmp_path / 'last_checkpoint').write_text(f'store://runs/{tmp_path.name}/recovery_10.pth' if remote else 'recovery_10.pth')
    hook.before_train(runner)
    assert (tmp_path / 'last_checkpoint').exists() is not remote  # it would lead from this run to an earlier one
    hook.signals.restore()
    hook.save_recovery(runner)
    assert sorted(path.name for path in folder.glob('recovery_*')) == ['recovery_10.pth', 'recovery_12.pth', 'recovery_notes.txt']
    recorded = (tmp_path / 'last_checkpoint').read_text()
    assert recorded == (f'store://runs/{tmp_path.name}/recovery_12.pth' if remote else 'recovery_12.pth')
    hook.delete_recoveries(keep=0)
    assert [path.name for path in folder.glob('recovery_*')] == ['recovery_notes.txt']


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


@pytest.mark.parametrize('method', ['CAE', 'MAE'])
@pytest.mark.parametrize('recorded', [True, False])
def test_a_model_of_another_library_does_not_resume_from_ours(method, recorded):
    """Both are named, also where their names differ in the library alone."""
    theirs = MAE.__new__(MAE)
    nn.Module.__init__(theirs)
    runner = SimpleNamespace(model=theirs, _load_from='x.pth', _resume=True)
    meta = dict(mmcae=dict(model=f'mmcae.{method}')) if recorded else dict(method=dict(name=method))
    with pytest.raises(ConfigError, match=f'x.pth is of mmcae.{method}, and the config trains mmpretrain.MAE: resume with the config'):
        CheckpointHook().after_load_checkpoint(runner, dict(meta=meta))
