"""Strategies that share a model out, and their checkpoints in pieces: killed and resumed like any other run, with mmcae.CheckpointHook."""

import importlib.util
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from mmcae.apis import load_encoder
from mmcae.checkpoints import load_state, read_checkpoint
from mmcae.checkpoints.reading import read_sharded
from mmcae.compat import has_accelerator

pytestmark = pytest.mark.skipif(has_accelerator(), reason='two processes would need two GPUs')
needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec('deepspeed') is None, reason='DeepSpeed is an extra')

FLEXIBLE = "runner_type = 'FlexibleRunner'\ncustom_hooks = []\nrandomness = dict(seed=3)\ntrain_dataloader = dict(num_workers=0)\n"
FSDP = FLEXIBLE + "strategy = dict(type='mmcae.FSDPStrategy', state_dict_cfg='{}')\noptim_wrapper = dict(use_fsdp=True)\n"
FSDP2 = FLEXIBLE + "strategy = dict(type='mmcae.FSDP2Strategy', param_dtype='bfloat16', async_save={})\n"
DEEPSPEED = f"""{FLEXIBLE}
strategy = dict(type='mmcae.DeepSpeedStrategy', zero_optimization=dict(stage={{}}), gradient_clipping=3.0, gradient_accumulation_steps={{}})
optim_wrapper = dict(
    _delete_=True,
    type='DeepSpeedOptimWrapper',
    constructor='mmcae.LayerDecayOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
)
"""
WIDER = [f'model.{name}=32' for name in ('backbone.arch.embed_dims', 'regressor.in_dims', 'regressor.embed_dims', 'decoder.embed_dims')]
PIECES = FSDP.format('local')
STRATEGIES = [
    pytest.param(PIECES, id='fsdp-pieces'),
    pytest.param(FSDP.format('full'), id='fsdp-files'),
    pytest.param(FLEXIBLE, id='ddp'),
    pytest.param(DEEPSPEED.format(1, 1), id='zero-1', marks=needs_deepspeed),
    pytest.param(DEEPSPEED.format(2, 2), id='zero-2-accumulated', marks=needs_deepspeed),
    pytest.param(DEEPSPEED.format(3, 1), id='zero-3', marks=needs_deepspeed),
]


def ended(trainings):
    """Wait for all ranks; returns their exit codes."""
    codes = [training.wait() for training in trainings]
    for training in trainings:
        print(training.text[-3000:])  # pytest shows it when something is wrong: the end tells, not the config before it
    return codes


def refusal(trainings):
    """The last line of the first rank, which refuses to start."""
    assert 2 in ended(trainings)
    return trainings[0].text.strip().splitlines()[-1]


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix in ('.pth', '.partial'))


@pytest.fixture
def interrupted(start, variant, tmp_path):
    """A run of two processes that is killed in the middle of its second epoch: `interrupted(text)` -> config."""

    def make(text, number=signal.SIGKILL):
        config = variant(f'{text}default_hooks = dict(checkpoint=dict(recovery_interval=1, max_keep_ckpts=3))')
        hook = dict(type='SignalAt', iteration=6, number=int(number))
        text += f'default_hooks = dict(checkpoint=dict(recovery_interval=1, max_keep_ckpts=3), signal={hook})'
        codes = ended(start(config=variant(text), processes=2))
        assert codes[0] == (-number if number == signal.SIGKILL else 128 + number)
        return config

    return make


@pytest.mark.parametrize('text', STRATEGIES)
def test_killed_and_resumed(start, interrupted, read, differences, tmp_path, text):
    """Exactly: every file and piece is what a run leaves that nobody killed."""
    config = interrupted(text)
    accumulated = 'steps=2' in text
    assert names(tmp_path / 'run') == [
        'epoch_1.pth',
        *(['recovery_2.pth', 'recovery_4.pth'] if accumulated else ['recovery_4.pth', 'recovery_5.pth']),
    ]
    resumed = start('--resume', config=config, processes=2, options=['train_cfg.max_epochs=4'])
    whole = start(work_dir=tmp_path / 'whole', config=config, processes=2, options=['train_cfg.max_epochs=4'])
    assert ended(resumed) == [0, 0] == ended(whole)
    assert f'resumed epoch: 1, iter: {4 if accumulated else 5}' in resumed[0].text
    assert names(tmp_path / 'run') == names(tmp_path / 'whole') == ['epoch_2.pth', 'epoch_3.pth', 'epoch_4.pth']
    for name in names(tmp_path / 'run'):
        path, expected = tmp_path / 'run' / name, tmp_path / 'whole' / name
        files = sorted(expected.glob('*.pt*')) if expected.is_dir() else [expected]
        assert files
        for file in files:
            assert differences(read(file), read(path / file.name if path.is_dir() else path)) == []
            assert read(file)['optimizer_state_dict' if 'optim_states' in file.name else 'message_hub']
        if path.is_dir():
            assert set(json.loads((path / 'pieces.json').read_text())) == {file.name for file in files}


def content_of(folder):
    """All that a folder of FSDP2 holds."""
    stored = read_sharded(folder)
    return read_checkpoint(folder / 'training.pth'), {name: stored.whole(name) for name in stored.tensors}


def test_fsdp2_killed_and_resumed(start, interrupted, variant, differences, tmp_path):
    """Exactly, also where the resumed run writes in the background; and by another number of processes."""
    config, run = interrupted(FSDP2.format(False)), tmp_path / 'run'
    assert names(run) == ['epoch_1.pth', 'recovery_4.pth', 'recovery_5.pth']
    resumed = start('--resume', config=variant(FSDP2.format(True)), processes=2, options=['default_hooks.checkpoint.recovery_interval=1'])
    whole = start(work_dir=tmp_path / 'whole', config=config, processes=2)
    assert ended(resumed) == [0, 0] == ended(whole)
    assert 'resumed epoch: 1, iter: 5' in resumed[0].text and (run / 'last_checkpoint').read_text().strip() == 'epoch_3.pth'
    assert names(run) == names(tmp_path / 'whole') == ['epoch_1.pth', 'epoch_2.pth', 'epoch_3.pth', 'weights.pth']
    for name in names(run)[1:3]:
        found, expected = content_of(run / name), content_of(tmp_path / 'whole' / name)
        assert differences(found, expected) == [] and any(key.startswith('optimizer.') for key in found[1])
    weights = load_state(run / 'weights.pth')
    assert weights.keys() == load_state(run / 'epoch_3.pth').keys() and load_encoder(run / 'weights.pth').spec.embed_dims == 16

    # Without a learning rate weights stay as they are.
    options = ['train_cfg.max_epochs=4', 'optim_wrapper.optimizer.lr=1e-30']
    assert ended(start('--resume', config=config, processes=3, options=options)) == [0, 0, 0]
    state = load_state(run / 'weights.pth')
    assert names(run)[-2] == 'epoch_4.pth' and all(torch.equal(state[name], value) for name, value in weights.items())


@HOOKS.register_module()
class KillWhileSaving(Hook):
    """Ends the first process when its piece of a checkpoint is about to be written; the other has written its own."""

    priority = 'LOWEST'

    def before_save_checkpoint(self, runner, checkpoint):
        if checkpoint['meta']['iter'] == 5 and runner.rank == 0:
            while not Path(runner.work_dir, 'unfinished.partial/rank1.pth').exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)


def test_killed_while_pieces_are_written(start, variant, tmp_path):
    text = PIECES + 'default_hooks = dict(checkpoint=dict(recovery_interval=1){})'
    first = start(config=variant(text.format(', kill=dict(type="KillWhileSaving")')), processes=2)
    assert ended(first)[0] == -signal.SIGKILL
    run = tmp_path / 'run'
    assert names(run) == ['epoch_1.pth', 'recovery_3.pth', 'recovery_4.pth', 'unfinished.partial']
    resumed = start('--resume', config=variant(text.format('')), processes=2, options=['train_cfg.max_epochs=2'])
    assert ended(resumed) == [0, 0]
    assert f'resumed from {run}/recovery_4.pth' in resumed[0].text and 'Not resumed from' not in resumed[0].text
    assert names(run) == ['epoch_1.pth', 'epoch_2.pth']


def test_a_signal_saves_pieces(start, interrupted, tmp_path):
    config = interrupted(PIECES, signal.SIGTERM)
    assert names(tmp_path / 'run')[-1] == 'recovery_6.pth' and (tmp_path / 'run/recovery_6.pth/rank1.pth').exists()
    resumed = start('--resume', config=config, processes=2, options=['optim_wrapper.optimizer.lr=0.002', 'param_scheduler.0.end=2'])
    assert ended(resumed) == [0, 0]
    assert 'From here on the config holds: lr 0.001 -> 0.002; WarmupCosineLR.end 9 -> 6' in resumed[0].text


def test_pieces_are_read_as_one_checkpoint(start, variant, fork_tool, tmp_path):
    """By whatever reads checkpoints, such as the converter: the same tensors as in a file."""
    options = ['train_cfg.max_epochs=1', 'param_scheduler.0.end=2']
    for name, text in (('pieces', PIECES), ('files', FSDP.format('full'))):
        assert ended(start(work_dir=tmp_path / name, config=variant(text), processes=2, options=options)) == [0, 0]
        code, output = fork_tool(
            'tools/model_converters/convert.py', tmp_path / name / 'epoch_1.pth', tmp_path / f'{name}.pth', '--to', 'mmcae'
        )
        assert code == 0, output
    pieces, files = (load_state(tmp_path / f'{name}.pth') for name in ('pieces', 'files'))
    assert len(pieces) > 40 and pieces.keys() == files.keys() and all(torch.equal(pieces[name], files[name]) for name in files)
    content = read_checkpoint(tmp_path / 'pieces/epoch_1.pth')
    assert content['meta']['epoch'] == 1 and 'optimizer' not in content


def test_pieces_that_cannot_be_resumed(start, interrupted, variant, tmp_path):
    """Of a damaged checkpoint, by another number of processes, by another model, by another strategy."""
    config = interrupted(PIECES)
    run = tmp_path / 'run'
    (run / 'recovery_5.pth/rank1.pth').unlink()
    piece = (run / 'recovery_4.pth/rank0.pth').read_bytes()
    (run / 'recovery_4.pth/rank0.pth').write_bytes(piece[:-9])
    resumed = start('--resume', config=config, processes=2, options=['train_cfg.max_epochs=2'])
    assert ended(resumed) == [0, 0]
    text = resumed[0].text
    for name, piece in (('recovery_4', 'rank0'), ('recovery_5', 'rank1')):
        reason = f'is no complete checkpoint: 1 of its 2 pieces are missing or cut off, such as {piece}'
        assert f'Not resumed from: {run}/{name}.pth {reason}' in text
    assert f'resumed from {run}/epoch_1.pth' in text
    shutil.rmtree(run / 'epoch_1.pth')

    line = refusal(start('--resume', config=config, processes=1))
    assert f'{run}/epoch_2.pth was written by 2 processes and can be read by as many, not by 1' in line and 'full' in line
    line = refusal(start('--resume', config=config, processes=2, options=WIDER))
    assert 'belongs to another model' in line and 'backbone.blocks.0' in line
    line = refusal(start('--resume', config=variant(FSDP.format('full')), processes=2))
    assert f'{run}/epoch_2.pth is pieces of FSDP, but' in line and 'resumes from one file' in line


@needs_deepspeed
def test_what_deepspeed_takes_from_the_config(start, interrupted, variant, tmp_path):
    """On resuming, as with other strategies; and what it refuses."""
    config = interrupted(DEEPSPEED.format(1, 1), signal.SIGTERM)
    changes = ['optim_wrapper.optimizer.lr=0.002', 'param_scheduler.0.end=2', 'strategy.gradient_clipping=1.0']
    resumed = start('--resume', config=config, processes=2, options=changes)
    assert ended(resumed) == [0, 0]
    assert 'From here on the config holds: lr 0.001 -> 0.002; WarmupCosineLR.end 9 -> 6' in resumed[0].text
    assert 'From here on the config holds: strategy.gradient_clipping 3.0 -> 1.0' in resumed[0].text
    run = tmp_path / 'run'
    line = refusal(start('--resume', config=config, processes=1))
    assert f'{run}/epoch_3.pth can be resumed by as many processes as have written it' in line
    line = refusal(start('--resume', config=config, processes=2, options=WIDER))
    assert 'belongs to another model' in line and 'size mismatch' in line
