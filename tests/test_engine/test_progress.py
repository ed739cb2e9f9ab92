"""The live line of a training: on a terminal, and nowhere else."""

import logging
import os
import pty
import subprocess
import sys

import pytest

from mmcae.engine.hooks.progress import keep


def read_all(descriptor):
    """Everything that is written to a terminal until nobody has it open any more."""
    content = b''
    while True:
        try:
            part = os.read(descriptor, 2**16)
        except OSError:  # how Linux says so
            return content.decode(errors='replace')
        if not part:
            return content.decode(errors='replace')
        content += part


@pytest.fixture
def command(image_folder, tmp_path):
    """A training of four steps, and one that fails in its first."""
    (tmp_path / 'tiny.py').write_text(
        f"""
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmcae.CAEViT', arch=dict(embed_dims=16, num_layers=1, num_heads=2), img_size=16, patch_size=8),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=16),
    data_preprocessor=dict(num_classes=2, mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True),
)
train_dataloader = dict(
    batch_size=4,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CustomDataset', data_root='{image_folder(size=(16, 16))}', pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    ),
)
train_cfg = dict(by_epoch=True, max_epochs=2)
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3))
default_hooks = dict(logger=dict(type='LoggerHook', interval=1))
"""
    )
    return [sys.executable, '-m', 'mmcae', 'train', str(tmp_path / 'tiny.py'), '--work-dir', str(tmp_path / 'run')]


def test_on_a_terminal(command, tmp_path):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=dict(os.environ, TERM='xterm', COLUMNS='120'))
    os.close(theirs)
    shown = read_all(ours)
    assert process.wait() == 0, shown
    assert '4/4' in shown and 'epoch 2/2' in shown and 'images/s' in shown and 'loss' in shown
    assert 'Epoch(train)' not in shown and 'Saving checkpoint at 2 epochs' in shown
    assert shown.rstrip().endswith('\x1b[?25h') or '\x1b[?25h' in shown  # the cursor is back
    (log,) = (tmp_path / 'run').glob('*/*.log')
    assert 'Epoch(train) [2][2/2]' in log.read_text() and '\x1b' not in log.read_text()


def test_elsewhere(command, fork_tool, tmp_path):
    code, output = fork_tool('tools/train.py', *command[4:])
    assert code == 0, output
    assert 'Epoch(train) [2][2/2]' in output and '\x1b' not in output and 'images/s' not in output


def test_lines_that_are_kept():
    def record(text):
        return logging.LogRecord('mmengine', logging.INFO, '', 0, text, (), None)

    assert not keep(record('Epoch(train) [1][1/2]  lr: 1')) and not keep(record('Iter(train) [1/2]'))
    assert keep(record('Epoch(val) [1][2/2]  accuracy/top1: 50')) and keep(record('Saving checkpoint at 1 epochs'))
