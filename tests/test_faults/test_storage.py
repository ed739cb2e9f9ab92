"""Disks that are full, folders that cannot be written, files that are damaged: nothing that was saved is lost, and one line says why."""

import os
import resource
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

OPTIONS = ['train_dataloader.num_workers=0', 'default_hooks.checkpoint.recovery_interval=2']


def the_error(training):
    """The one line in which a training says why it ends."""
    assert training.wait() == 2 and 'Traceback' not in training.text, training.text
    line = training.text.strip().splitlines()[-1]
    assert line.startswith('error: '), training.text
    return line


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_file() and path.suffix in ('.pth', '.partial'))


@pytest.fixture
def first_epoch(start, tmp_path):
    """A finished first epoch in tmp_path/run; returns the size of its checkpoint in bytes."""
    training = start(options=[*OPTIONS, 'train_cfg.max_epochs=1'])
    assert training.wait() == 0, training.text
    assert names(tmp_path / 'run') == ['epoch_1.pth']
    return (tmp_path / 'run/epoch_1.pth').stat().st_size


def test_file_that_may_not_grow(start, first_epoch, tmp_path, read):
    """A limit on the size of files, as a quota sets it."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (first_epoch // 2, first_epoch // 2))

    line = the_error(start('--resume', options=OPTIONS, limits=[limit]))
    assert 'File too large' in line and 'recovery_8.pth' in line
    assert names(tmp_path / 'run') == ['epoch_1.pth'] and read(tmp_path / 'run/epoch_1.pth')['meta']['iter'] == 6


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of so many bytes and return its folder; skips the test where that is forbidden."""
    folder = tmp_path / 'disk'

    def mount(size):
        folder.mkdir()
        if subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}', 'none', folder], capture_output=True).returncode:
            pytest.skip('only root may mount a small disk')
        return folder

    yield mount
    subprocess.run(['umount', '--lazy', folder], capture_output=True)


def test_full_disk(start, first_epoch, small_disk, tmp_path, read):
    """With room for two checkpoints and a half, the logs included; then with more."""
    disk = small_disk(int(2.6 * first_epoch))
    line = the_error(start(work_dir=disk / 'run', options=OPTIONS))
    assert 'No space left on device' in line and 'recovery_6.pth' in line
    assert names(disk / 'run') == ['recovery_2.pth', 'recovery_4.pth']
    assert read(disk / 'run/recovery_4.pth')['meta']['iter'] == 4
    subprocess.run(['mount', '-o', f'remount,size={10 * first_epoch}', disk], check=True)
    training = start('--resume', work_dir=disk / 'run', options=OPTIONS)
    assert training.wait() == 0 and f'resumed from {disk}/run/recovery_4.pth' in training.text, training.text


def test_folder_without_permission(start, config):
    """At the start; as another user than root, who may write everywhere."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        folder = Path(name)
        folder.chmod(0o555)
        limits = [lambda: os.setuid(65534)] if os.geteuid() == 0 else []
        training = start(config=shutil.copy(config, folder) if limits else config, work_dir=folder / 'run', limits=limits)
        assert f'Cannot write results to {folder}/run: Permission denied. Name another folder with --work-dir' in the_error(training)


def test_folder_that_is_closed_while_a_training_runs(start, tmp_path):
    run = tmp_path / 'run'
    training = start(options=[*OPTIONS, 'train_cfg.max_epochs=1000'])
    training.wait_for(r'Epoch\(train\) +\[2\]')
    # root is stopped by the immutable flag alone.
    close, reopen = (['chattr', '+i'], ['chattr', '-i']) if os.geteuid() == 0 else (['chmod', '555'], ['chmod', '755'])
    if subprocess.run([*close, run], capture_output=True).returncode:
        pytest.skip('the file system has no immutable flag')
    try:
        line = the_error(training)
    finally:
        subprocess.run([*reopen, run], check=True)
    assert ('not permitted' in line or 'Permission denied' in line) and f'{run}/' in line
    assert 'epoch_1.pth' in names(run)


def test_damaged_newest_checkpoint(start, first_epoch, tmp_path):
    """It is named, and the one before is used, though last_checkpoint names the damaged one."""
    run = tmp_path / 'run'
    shutil.copy(run / 'epoch_1.pth', run / 'recovery_8.pth')
    os.truncate(run / 'recovery_8.pth', first_epoch - 100)
    (run / 'last_checkpoint').write_text(str(run / 'recovery_8.pth'))
    assert f'{run}/recovery_8.pth is damaged' in the_error(start('--resume', run / 'recovery_8.pth'))  # asked for by name
    training = start('--resume', options=[*OPTIONS, 'train_cfg.max_epochs=2'])
    assert training.wait() == 0, training.text
    assert f'Not resumed from: {run}/recovery_8.pth is damaged' in training.text
    assert f'resumed from {run}/epoch_1.pth' in training.text and 'resumed epoch: 1, iter: 6' in training.text


def test_damaged_checkpoints_are_replaced(start, variant, first_epoch, tmp_path):
    """Those of later iterations count neither as written before nor as kept: a run that goes on from an earlier one leaves its own."""
    run = tmp_path / 'run'
    for number in (8, 10, 12):
        shutil.copy(run / 'epoch_1.pth', run / f'recovery_{number}.pth')
        os.truncate(run / f'recovery_{number}.pth', first_epoch - 100)
    hook = dict(type='SignalAt', iteration=11, number=int(signal.SIGKILL))
    options = [*OPTIONS, 'train_cfg.max_epochs=2']
    training = start('--resume', config=variant(f'default_hooks = dict(signal={hook})'), options=options)
    assert training.wait() == -signal.SIGKILL and f'resumed from {run}/epoch_1.pth' in training.text, training.text
    assert names(run) == ['epoch_1.pth', 'recovery_10.pth', 'recovery_8.pth']
    training = start('--resume', options=options)
    assert training.wait() == 0 and f'resumed from {run}/recovery_10.pth' in training.text, training.text
    assert 'Not resumed from' not in training.text
