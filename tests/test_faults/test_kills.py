"""Killed at random moments, again and again, a run loses nothing but the iterations since its last checkpoint.

Four times here; with MMCAE_KILLS=25 in the environment as often as docs/faults.md reports.
"""

import os
import random
import signal
import time
import zipfile

import torch

KILLS = int(os.environ.get('MMCAE_KILLS', 4))
OPTIONS = ['randomness.seed=5', 'param_scheduler.0.end=3', 'default_hooks.checkpoint.recovery_interval=1', 'train_dataloader.num_workers=0']


def whole(folder):
    """(iteration, name) of every checkpoint that is complete, found by reading all of it; the last is where a run has to go on."""
    found = []
    for path in folder.glob('*.pth'):
        with zipfile.ZipFile(path) as archive:  # raises for what is cut off: names must stand for complete files only
            assert archive.testzip() is None
        found.append((torch.load(path, weights_only=True)['meta']['iter'], path.name))
    return sorted(found)


def test_kills_at_random_moments(start, read, differences, tmp_path):
    moments, run = random.Random(), tmp_path / 'run'
    unfinished, positions = 0, []
    for _ in range(KILLS):
        before = whole(run) if run.exists() else []
        training = start('--resume', options=[*OPTIONS, 'train_cfg.max_epochs=10000'])
        if moments.random() < 0.8:  # else the start of the process is included
            training.wait_for(r'Epoch\(train\)')
        time.sleep(moments.uniform(0, 1))
        training.send(signal.SIGKILL)
        assert training.wait() == -signal.SIGKILL, training.text
        unfinished += any(run.glob('unfinished-*.partial'))
        after = whole(run)
        positions.append(after[-1][0] if after else 0)
        if before and 'Checkpoints will be saved' in training.text:
            iteration, name = before[-1]
            assert f'iter: {iteration}\n' in training.text and f'resumed from {run}/' in training.text, training.text
            assert read(run / name)['meta']['iter'] == iteration if (run / name).exists() else True
            assert positions[-1] >= iteration  # never back
            assert 'Not resumed from' not in training.text
        assert len(after) >= min(2, len(before))
    epochs = positions[-1] // 6 + 1
    print(f'{KILLS} kills, {unfinished} of them while a checkpoint was written; checkpoints after iterations {positions}')
    end = [*OPTIONS, f'train_cfg.max_epochs={epochs}']
    killed, straight = start('--resume', options=end), start(work_dir=tmp_path / 'straight', options=end)
    assert killed.wait() == 0 == straight.wait(), killed.text
    assert not list(run.glob('recovery_*')) + list(run.glob('*.partial'))
    straight, killed = read(tmp_path / f'straight/epoch_{epochs}.pth'), read(run / f'epoch_{epochs}.pth')
    assert killed['meta']['iter'] == 6 * epochs == len(killed['message_hub']['log_scalars']['train/loss']['history'])
    assert differences(straight, killed) == []
