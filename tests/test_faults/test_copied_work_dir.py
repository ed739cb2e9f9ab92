"""A work dir that is copied to branch off, or moved: each run goes on from its own checkpoints and leaves the other's alone."""

import shutil

import pytest

OPTIONS = ['train_dataloader.num_workers=0']


def files(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob('*.pth')}


def ended(training):
    assert training.wait() == 0, training.text
    return training.text


@pytest.fixture
def original(start, tmp_path):
    """A run of one epoch, in tmp_path/run."""
    ended(start(options=[*OPTIONS, 'train_cfg.max_epochs=1']))
    assert (tmp_path / 'run/last_checkpoint').read_text() == 'epoch_1.pth'
    return tmp_path / 'run'


def test_copied(start, original, tmp_path):
    """The original goes on; then the copy, by the config that mmengine has left in it."""
    copy = tmp_path / 'copy'
    shutil.copytree(original, copy)
    ended(start('--resume', options=[*OPTIONS, 'train_cfg.max_epochs=2']))
    before = files(original)
    training = start('--resume', config=copy / 'tiny_cae.py', work_dir='', options=[*OPTIONS, 'train_cfg.max_epochs=3'])
    text = ended(training)
    assert f'resumed from {copy}/epoch_1.pth' in text and 'resumed epoch: 1, iter: 6' in text
    assert files(original) == before and sorted(files(copy)) == ['epoch_1.pth', 'epoch_2.pth', 'epoch_3.pth']
    for config in [copy / 'tiny_cae.py', *copy.glob('*/vis_data/config.py')]:
        assert str(original) not in config.read_text()
    # Dumped by a run that was resumed, the config does not name the file that it was resumed from.
    text = ended(start(config=copy / 'tiny_cae.py', work_dir='', options=[*OPTIONS, 'train_cfg.max_epochs=4']))
    assert f'resumed from {copy}/epoch_3.pth' in text


def test_written_by_mmengine(start, original, tmp_path):
    """With its absolute path in last_checkpoint."""
    copy = tmp_path / 'copy'
    (original / 'last_checkpoint').write_text(str(original / 'epoch_1.pth'))
    shutil.copytree(original, copy)
    text = ended(start('--resume', work_dir=copy, options=[*OPTIONS, 'train_cfg.max_epochs=1']))
    assert f'Not resumed from: {original}/epoch_1.pth, which {copy}/last_checkpoint names' in text
    assert f'resumed from {copy}/epoch_1.pth' in text
