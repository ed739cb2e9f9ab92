"""What a tool says, and with which exit code, for each kind of error."""

import errno
import re
import subprocess
import sys

import pytest
import torch
from mmengine.registry import DATASETS, HOOKS, MODELS, DefaultScope, Registry

from mmcae.utils.errors import CheckpointError, ConfigError, DataError, DependencyError, explain, nearest, one_line_errors

TOYS = Registry('toy', parent=None, scope='toys')


@TOYS.register_module()
class Robot:
    def __init__(self, arms, colour='red', **kwargs):
        assert arms > 0, f'arms={arms}: a robot has some'
        if kwargs:
            Engine(**kwargs)


class Engine:
    def __init__(self, power=1):
        self.power = power / 0


def message(capsys, action):
    """What `one_line_errors` prints for what an action raises."""
    with pytest.raises(SystemExit) as stopped, one_line_errors():
        action()
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith('error') and err.count('\n') == 1
    return err.strip()


def throw(error):
    raise error


@pytest.mark.parametrize('kind', [ConfigError, CheckpointError, DataError, DependencyError])
def test_our_errors_become_one_line(capsys, kind):
    assert message(capsys, lambda: throw(kind('a culprit\n  and a remedy'))) == 'error: a culprit and a remedy'


def test_the_rank_is_named(capsys, monkeypatch):
    monkeypatch.setenv('RANK', '3')
    assert message(capsys, lambda: throw(DataError('x'))) == 'error (rank 3): x'


def test_missing_and_unwritable_files_are_named(capsys, tmp_path):
    absent = tmp_path / 'absent.json'
    assert str(absent) in message(capsys, absent.read_text)
    assert str(tmp_path) in message(capsys, tmp_path.read_text)
    assert 'No space left on device' in message(capsys, lambda: throw(OSError(errno.ENOSPC, 'No space left on device')))


def test_files_that_may_not_grow_are_named(capsys):
    stale = OSError(errno.ESTALE, 'Stale file handle', 'x.json')
    assert message(capsys, lambda: throw(stale)).startswith('error: x.json: Stale file handle (ESTALE). Look at the disk, the mount or')
    assert message(capsys, lambda: throw(MemoryError())).startswith('error: not enough memory. Lower num_workers')
    assert message(capsys, lambda: throw(OSError(errno.EFBIG, 'File too large', 'x.pth'))) == 'error: File too large: x.pth'


@pytest.mark.parametrize(
    ('text', 'part'),
    [
        ('DataLoader worker (pid 7) is killed by signal: Killed. ', 'DataLoader worker (pid 7) is killed by signal: Killed. Most often'),
        ('DataLoader worker (pid(s) 7, 8) exited unexpectedly', 'worker (pid(s) 7, 8) exited unexpectedly. Most often'),
        ('[gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:1', 'Another process of this training has died'),
    ],
)
def test_lost_processes(capsys, text, part):
    found = message(capsys, lambda: throw(RuntimeError(text)))
    assert part in found and found.count('--resume') == 1


NCCL = (
    'NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, unhandled system error (run with NCCL_DEBUG=INFO for details), '
    'NCCL version 2.27.3\nncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error. \n'
    'Last error:\n'
)
NO_ROOM = 'Error while creating shared memory segment /dev/shm/nccl-AbC (size 9637888), error: No space left on device (28)'


@pytest.mark.parametrize(
    ('text', 'hint'),
    [
        (NCCL + NO_ROOM, 'NCCL has no room in /dev/shm: give the container more shared memory (docker run --shm-size=16g'),
        (NCCL + 'Call to ibv_create_cq failed with error Cannot allocate memory', 'NCCL has failed in this process'),
        (NCCL + 'socketStartConnect: Connect to 10.0.0.2<41021> failed : Connection refused', 'Another process of this training has died'),
        ('NCCL error: remote process exited or there was a network error', 'Another process of this training has died'),
        ('NCCL error in: NCCLUtils.cpp:1, invalid usage\nLast error:\nDuplicate GPU detected : rank 0 and rank 1', 'NCCL has failed'),
        ('[gloo/transport/tcp/unbound_buffer.cc:81] ' + 'Timed out waiting 600000ms for recv. ' * 9, 'Another process of this training'),
    ],
)
def test_errors_of_communication_are_printed_whole(capsys, text, hint):
    found = message(capsys, lambda: throw(RuntimeError(text)))
    assert hint in found and ' '.join(text.split()) in found and 'go on with --resume' in found


def test_unknown_type_is_named_with_the_nearest_ones(capsys):
    text = message(capsys, lambda: MODELS.build(dict(type='mmcae.CAEVitt')))
    assert "'mmcae.CAEVitt'" in text and 'mmcae.CAEViT' in text
    assert "'Robott'" in message(capsys, lambda: TOYS.build(dict(type='Robott', arms=2)))


@pytest.mark.parametrize(
    ('registry', 'asked', 'part'),
    [
        (MODELS, 'CAEViT', "did you mean 'mmcae.CAEViT'?"),  # ours without its scope
        (MODELS, 'mmdet.CAEViT', "did you mean 'mmcae.CAEViT'?"),  # or under another one
        (MODELS, 'LinearClsHead', "did you mean 'mmpretrain.LinearClsHead'?"),
        (MODELS, 'mmpretrain.CAEVit', "did you mean 'mmcae.CAEViT'"),
        (HOOKS, 'CompilePart', "'mmcae.CompileParts'"),
        (MODELS, 'CheckpointHook', 'asks for a model there; CheckpointHook is a hook'),
        (HOOKS, 'mmcae.CAEViT', 'asks for a hook there; CAEViT is a model'),
        (MODELS, 'Zzzzzzzz', "No registry knows type 'Zzzzzzzz', which the config asks for"),
    ],
)
def test_names_that_are_offered_work(capsys, registry, asked, part):
    """What is offered can be built from where the other name was asked for, and is not that very name."""
    import mmpretrain.models  # noqa: F401

    with DefaultScope.overwrite_default_scope('mmengine'):
        text = message(capsys, lambda: registry.build(dict(type=asked)))
        assert part in text
        offered = re.findall("'([^']*)'", text.partition('did you mean')[2])
        assert asked not in offered and all(registry.get(name) for name in offered)


def test_the_current_scope_needs_no_name(capsys):
    import mmpretrain.models  # noqa: F401

    with DefaultScope.overwrite_default_scope('mmpretrain'):
        assert "did you mean 'LinearClsHead'" in message(capsys, lambda: MODELS.build(dict(type='LinearClsHed')))


@pytest.mark.parametrize(
    ('error', 'text'),
    [
        (ModuleNotFoundError("No module named 'wandb'", name='wandb'), "No module named 'wandb', .*Remedy: pip install wandb$"),
        (ModuleNotFoundError("No module named 'cv2.x'", name='cv2.x'), 'Remedy: pip install opencv-python-headless'),
        (ImportError('Please run "pip install mlflow" to install mlflow'), 'Please run "pip install mlflow".*commands.doctor'),
    ],
)
def test_missing_libraries(capsys, error, text):
    assert re.search(text, message(capsys, lambda: throw(error)))


def test_a_broken_import_of_ours_is_a_bug():
    with pytest.raises(ModuleNotFoundError), one_line_errors():
        import mmcae.no_such_module  # noqa: F401


def test_unknown_argument_is_named_with_the_nearest_ones(capsys):
    assert "Engine has no argument 'powr'; did you mean 'power'?" in message(capsys, lambda: TOYS.build(dict(type='Engine', powr=2)))


def test_missing_argument_and_refused_value(capsys):
    assert 'Robot refuses its arguments: Robot.__init__() missing 1 required' in message(capsys, lambda: TOYS.build(dict(type='Robot')))
    assert 'Robot refuses its arguments: arms=0: a robot has some' in message(capsys, lambda: TOYS.build(dict(type='Robot', arms=0)))


class Unreadable(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise DataError('images/7.png is damaged') if index else FileNotFoundError(errno.ENOENT, 'No such file', 'images/7.png')


@pytest.mark.parametrize('index', [0, 1])
def test_errors_of_loading_processes_come_without_their_trace(capsys, index):
    loader = torch.utils.data.DataLoader(Unreadable(), sampler=[index], num_workers=1)
    text = message(capsys, lambda: list(loader))
    assert 'images/7.png' in text and 'Traceback' not in text and len(text) < 80


def test_data_set_without_images(capsys, tmp_path):
    settings = dict(type='mmseg.BaseSegDataset', data_root=str(tmp_path), img_suffix='.tif', metainfo=dict(classes=['a']))
    text = message(capsys, lambda: DATASETS.build(settings))
    assert 'BaseSegDataset found no image' in text and str(tmp_path) in text and "'img_suffix': '.tif'" in text


def test_batch_norm_over_one_value(capsys):
    assert 'set train_dataloader.batch_size to 2 or more' in message(capsys, lambda: torch.nn.BatchNorm2d(3)(torch.zeros(1, 3, 1, 1)))


@pytest.mark.parametrize(
    'bug',
    [
        lambda: TOYS.build(dict(type='Robot', arms=1, power=2)),  # an error inside, after the arguments were taken
        lambda: {}['key'],
        lambda: throw(TypeError('a bug')),
        lambda: throw(RuntimeError('shapes cannot be multiplied')),
        lambda: throw(OSError('odd')),
    ],
)
def test_bugs_keep_their_trace(bug):
    with pytest.raises((ZeroDivisionError, KeyError, TypeError, RuntimeError, OSError)), one_line_errors():
        bug()


def test_trace_on_request(monkeypatch):
    monkeypatch.setenv('MMCAE_TRACEBACK', '1')
    with pytest.raises(ConfigError), one_line_errors():
        raise ConfigError('x')


# Forks a process for each way to fail, whose stdout and stderr are one file; it prints, logs, fails, and ends as any Python process does.
SPEAKERS = """
import argparse, logging, os, sys, warnings
from mmengine.logging import MMLogger, print_log
from mmcae.utils.errors import DataError, one_line_errors

for number, failure in enumerate(sys.argv[1:]):
    if not os.fork():
        log = os.open(f'{number}.log', os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1), os.dup2(log, 2)
        break
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
else:
    sys.exit()
with one_line_errors():
    print_log('logged', MMLogger.get_instance('speaker'))
    logging.getLogger('other').addHandler(logging.StreamHandler(sys.stdout))
    logging.getLogger('other').error('logged by another')
    print('printed')
    exec(failure)
"""
FAILURES = [
    ("raise DataError('damaged')", 2, 'error: damaged'),
    ("print('unfinished', end=' ')\nraise DataError('damaged')", 2, 'unfinished error: damaged'),
    ("argparse.ArgumentParser('tool').error('--size must be above 0')", 2, 'tool: error: --size must be above 0'),
    ("sys.exit('Interrupted')", 1, 'Interrupted'),
    ("raise ZeroDivisionError('a bug')", 1, 'ZeroDivisionError: a bug'),
    ("warnings.warn('careful')", 0, 'UserWarning: careful'),
]


def test_error_comes_last_where_stdout_and_stderr_are_one_file(tmp_path):
    """In processes of their own, because a test's streams are not those of a process."""
    command = [sys.executable, '-c', SPEAKERS, *(failure for failure, _, _ in FAILURES)]
    done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True)
    assert [int(code) for code in done.stdout.split()] == [code for _, code, _ in FAILURES]
    for number, (_, _, last) in enumerate(FAILURES):
        lines = (tmp_path / f'{number}.log').read_text().splitlines()
        assert lines[0].endswith('logged') and lines[1:3] == ['logged by another', 'printed']
        assert lines[-1].endswith(last), lines


def test_errors_of_processes_under_torchrun_follow_their_output(tmp_path):
    (tmp_path / 'speaker.py').write_text(
        'import os\nfrom mmcae.utils.errors import DataError, one_line_errors\n'
        "with one_line_errors():\n    print('output of', os.environ['RANK'])\n    raise DataError('damaged')\n"
    )
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', '--no-python']
    command += [sys.executable, str(tmp_path / 'speaker.py')]  # torchrun's own way to start Python is unbuffered
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    assert done.returncode and 'error (rank ' in done.stdout
    for rank in range(2):  # the first to fail may end the other before it speaks
        if f'error (rank {rank})' in done.stdout:
            assert done.stdout.index(f'output of {rank}\n') < done.stdout.index(f'error (rank {rank}): damaged\n'), done.stdout


def test_nearest():
    assert nearest('bakbone', ['backbone', 'neck']) == "; did you mean 'backbone'?"
    assert nearest('zebra', ['backbone', 'neck']) == ''


TOYS.register_module(module=Engine)


def test_type_of_a_library_that_is_not_installed(monkeypatch):
    """Such as a detector in the config of another library's scope."""
    monkeypatch.setitem(sys.modules, 'mmdet', None)
    error = KeyError('mmdet.MaskRCNN is not in the mmengine::model registry. Please check whether ...')
    assert "asks for type 'mmdet.MaskRCNN': mmdet is not installed. Remedy: pip install \"mmcae[detection]" in explain(error)
