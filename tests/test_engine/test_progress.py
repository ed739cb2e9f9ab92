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
def command(tiny_classifier, image_folder, tmp_path):
    """A training of four steps."""
    more = 'train_cfg.update(max_epochs=2)\ndefault_hooks = dict(logger=dict(type="LoggerHook", interval=1))'
    config = tiny_classifier(image_folder(size=(16, 16)), more)
    return [sys.executable, '-m', 'mmcae', 'train', str(config), '--work-dir', str(tmp_path / 'run')]


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
