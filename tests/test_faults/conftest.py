"""A tiny pretraining run in processes of its own that can be interrupted, starved and killed.

The processes are forked from pytest, which has the libraries imported: they run the main function of tools/train.py like any other, a few
seconds faster.
"""

import os
import re
import runpy
import signal
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

import mmcae.datasets
import mmcae.engine
import mmcae.models  # noqa: F401
from mmcae import compat

compat.import_mmpretrain()

CONFIG = """
_base_ = ['{root}/configs/_base_/runtimes/pretraining.py']
latent = dict(embed_dims=16, num_heads=2, num_layers=1)
model = dict(
    type='mmcae.CAE',
    backbone=dict(
        type='mmcae.CAEViT', arch=dict(embed_dims=16, num_layers=2, num_heads=2), img_size=32, patch_size=8, drop_path_rate=0.3
    ),
    regressor=dict(type='mmcae.LatentContextualRegressor', in_dims=16, **latent),
    decoder=dict(type='mmcae.CAEDecoder', num_outputs=192, **latent),
    target_generator=dict(type='mmcae.PixelTargets', patch_size=8),
)
data_preprocessor = dict(type='mmcae.ViewPreprocessor', mean=[120.0], std=[60.0], second_mean=[0.0], second_std=[255.0], to_rgb=False)
train_dataloader = dict(
    batch_size=2,
    num_workers=1,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='CustomDataset',
        data_root='{images}',
        with_label=False,
        pipeline=[
            dict(type='mmcae.LoadImage'),
            dict(type='RandomFlip', prob=0.5),
            dict(type='mmcae.TwoViewCrop', size=32, second_size=32),
            dict(type='mmcae.RandomMaskGenerator', grid=4, ratio=0.5),
            dict(type='PackInputs'),
        ],
    ),
)
train_cfg = dict(type='mmcae.EpochBasedTrainLoop', max_epochs=3)
optim_wrapper = dict(
    type='mmcae.AmpOptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    constructor='mmcae.LayerDecayOptimWrapperConstructor',
    clip_grad=dict(max_norm=3.0),
)
param_scheduler = [dict(type='mmcae.WarmupCosineLR', warmup=1, end=3, by_epoch=True, convert_to_iter_based=True)]
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(recovery_interval=None))
custom_hooks = [dict(type='EMAHook', ema_type='ExponentialMovingAverage', momentum=0.1)]
randomness = dict(seed=None, diff_rank_seed=True)
"""


@pytest.fixture
def config(repository, image_folder, tmp_path):
    """Three epochs of six iterations of two images, with everything that a resumed run has to restore."""
    path = tmp_path / 'tiny_cae.py'
    images = image_folder('images', count=6, size=(40, 40))
    path.write_text(CONFIG.replace('{root}', str(repository)).replace('{images}', str(images)))
    return path


@pytest.fixture
def variant(config, tmp_path):
    """The same config with changes: `variant("train_cfg = dict(max_epochs=5)")`; returns its path."""

    def write(text):
        path = tmp_path / f'variant_{len(list(tmp_path.glob("variant_*")))}.py'
        path.write_text(f"_base_ = ['{config}']\n{text}\n")
        return path

    return write


@HOOKS.register_module()
class SignalAt(Hook):
    """Sends its own process a signal in an iteration, as from outside; on one rank."""

    def __init__(self, iteration, number, rank=0):
        self.iteration, self.number, self.rank = iteration, number, rank

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == self.iteration and runner.rank == self.rank:
            os.kill(os.getpid(), self.number)


class Training:
    """One rank of tools/train.py in a process of its own."""

    def __init__(self, tool, arguments, output, environment=(), limits=()):
        self.output, self.code = output, None
        self.process = os.fork()
        if not self.process:
            self.run(tool, arguments, dict(environment), limits)

    def run(self, tool, arguments, environment, limits):
        code = 1
        try:
            os.setsid()
            signal.alarm(300)  # whatever happens, the test ends
            stream = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(stream, 1)
            os.dup2(stream, 2)
            sys.stdout = os.fdopen(1, 'w')
            sys.stderr = os.fdopen(2, 'w', buffering=1)
            os.environ.update(environment)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # whatever nohup had pytest do
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            for limit in limits:
                limit()
            sys.argv = [str(tool), *map(str, arguments)]
            runpy.run_path(str(tool), run_name='__main__')
            code = 0
        except SystemExit as stop:
            code = stop.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    @property
    def text(self):
        return self.output.read_text(errors='replace') if self.output.exists() else ''

    def wait(self):
        """The exit code; negative for a signal that ended it."""
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
        assert self.code != -signal.SIGALRM, f'did not end; its output:\n{self.text}'
        return self.code

    def running(self):
        if self.code is None and (done := os.waitpid(self.process, os.WNOHANG))[0]:
            self.code = os.waitstatus_to_exitcode(done[1])
        return self.code is None

    def wait_for(self, pattern):
        """Wait until the output has something; returns the match."""
        while not (match := re.search(pattern, self.text)):
            assert self.running(), f'ended before printing {pattern!r}:\n{self.text}'
            time.sleep(0.01)
        return match

    def send(self, number):
        os.kill(self.process, number)

    def send_to_all(self, number):
        """To the loader workers too, as Slurm and a terminal do."""
        os.killpg(self.process, number)

    def children(self):
        return [int(number) for number in Path(f'/proc/{self.process}/task/{self.process}/children').read_text().split()]


@pytest.fixture
def start(repository, config, free_port, tmp_path):
    """Start a training: `start('--resume', options=['train_cfg.max_epochs=4'])`; with `processes`, a list of that many over gloo.

    It writes to tmp_path/run or to `work_dir`, with '' to where the config says.
    """
    started = []

    def run(*arguments, config=config, work_dir=None, options=(), processes=None, limits=()):
        tool = repository / 'tools' / 'train.py'
        words = [config, *([] if work_dir == '' else ['--work-dir', work_dir or tmp_path / 'run']), *arguments]
        words += ['--cfg-options', *options] if options else []
        port = free_port()
        trainings = []
        for rank in range(processes or 1):
            environment = {}
            if processes:
                environment = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=processes, MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
                environment = {name: str(value) for name, value in environment.items()}
            output = tmp_path / f'output_{len(started)}.txt'
            launcher = ['--launcher', 'pytorch'] if processes else []
            trainings.append(Training(tool, words[:1] + launcher + words[1:], output, environment, limits))
            started.append(trainings[-1])
        return trainings if processes else trainings[0]

    yield run
    for training in started:
        if training.running():
            training.send_to_all(signal.SIGKILL)
            training.code = training.code or os.waitstatus_to_exitcode(os.waitpid(training.process, 0)[1])


@pytest.fixture
def read():
    """A checkpoint's content."""
    return lambda path: torch.load(path, map_location='cpu', weights_only=True)


VOLATILE = {'time', 'cfg', 'experiment_name', 'written', 'last_ckpt', 'keep_ckpt_ids', 'eta', 'train/time', 'train/data_time'}


def same(a, b, path=''):
    """Where two checkpoints differ, times and names of runs left out; the empty list where they are equal to the last bit."""
    if isinstance(a, dict):
        names = a.keys() | b.keys() if isinstance(b, dict) else ()
        if not isinstance(b, dict) or a.keys() ^ b.keys():
            return [f'{path}: {set(a) ^ set(b)}']
        return [where for name in names - VOLATILE for where in same(a[name], b[name], f'{path}/{name}')]
    if isinstance(a, list | tuple):
        return [path] if len(a) != len(b) else [w for i, (x, y) in enumerate(zip(a, b, strict=True)) for w in same(x, y, f'{path}/{i}')]
    if isinstance(a, torch.Tensor):
        return [] if torch.equal(a, b) else [path]
    return [] if a == b else [f'{path}: {a} {b}']


@pytest.fixture
def differences():
    return same
