"""Which checkpoint a run goes on from, whatever is wrong with the others."""

import os

import pytest
import torch

from mmcae.utils.errors import CheckpointError
from mmcae.utils.resume import check_resumable, newest_checkpoint


def save(path, iteration, written=None, **content):
    meta = dict(iter=iteration, epoch=0) | (dict(mmcae=dict(written=written)) if written else {})
    torch.save(dict(meta=meta, state_dict=dict(w=torch.arange(5000.0)), optimizer={}) | content, path)


@pytest.fixture
def folder(tmp_path):
    """Three checkpoints, the newest last: as written by epoch, to recover, and by iteration."""
    save(tmp_path / 'epoch_1.pth', 6, written=100.0)
    save(tmp_path / 'recovery_8.pth', 8, written=101.0)
    save(tmp_path / 'iter_9.pth', 9, written=102.0)
    return tmp_path


def test_by_time_of_writing_and_not_by_name_or_file_time(folder):
    os.utime(folder / 'epoch_1.pth', (2e9, 2e9))  # copied
    (folder / 'last_checkpoint').write_text(str(folder / 'epoch_1.pth'))
    assert newest_checkpoint(folder) == (str(folder / 'iter_9.pth'), [])
    save(folder / 'epoch_1.pth', 6, written=103.0)  # a run that was started anew in the same folder
    assert newest_checkpoint(folder)[0] == str(folder / 'epoch_1.pth')


def test_checkpoints_of_mmengine_by_their_file_time(tmp_path):
    for number, when in ((1, 300), (2, 100), (3, 200)):
        save(tmp_path / f'epoch_{number}.pth', number)
        os.utime(tmp_path / f'epoch_{number}.pth', (when, when))
    assert newest_checkpoint(tmp_path)[0] == str(tmp_path / 'epoch_1.pth')


@pytest.mark.parametrize('share', [0, 0.02, 0.5, 0.999])
def test_cut_off(folder, share):
    path = folder / 'iter_9.pth'
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    found, problems = newest_checkpoint(folder)
    assert found == str(folder / 'recovery_8.pth')
    assert len(problems) == 1 and str(path) in problems[0] and 'damaged' in problems[0]


def test_a_flipped_bit_in_the_weights(folder):
    """torch.load does not notice it."""
    path = folder / 'iter_9.pth'
    content = bytearray(path.read_bytes())
    place = content.index(torch.tensor([1000.0, 1001.0]).numpy().tobytes())
    content[place + 1] ^= 4
    path.write_bytes(content)
    assert not torch.equal(torch.load(path, weights_only=True)['state_dict']['w'], torch.arange(5000.0))
    found, problems = newest_checkpoint(folder)
    assert found == str(folder / 'recovery_8.pth') and str(path) in problems[0] and 'checksum' in problems[0]
    with pytest.raises(CheckpointError, match='checksum'):
        check_resumable(path)


def test_other_files_are_left_alone(folder):
    torch.save(dict(w=torch.zeros(1)), folder / 'tokenizer.pth')  # weights
    save(folder / 'best_accuracy.pth', 12, written=200.0)
    content = torch.load(folder / 'best_accuracy.pth', weights_only=True)
    del content['optimizer']  # as mmengine writes the best one
    torch.save(content, folder / 'best_accuracy.pth')
    (folder / 'unfinished.partial').write_bytes(b'PK')
    assert newest_checkpoint(folder) == (str(folder / 'iter_9.pth'), [])
    with pytest.raises(CheckpointError, match='best_accuracy.pth holds weights alone'):
        check_resumable(folder / 'best_accuracy.pth')


def test_checkpoints_in_the_folder_that_last_checkpoint_names(folder, tmp_path_factory):
    """CheckpointHook's out_dir. The file itself may be gone or wrong."""
    work_dir = tmp_path_factory.mktemp('work')
    for last in (folder / 'iter_9.pth', folder / 'iter_10.pth'):
        (work_dir / 'last_checkpoint').write_text(str(last))
        assert newest_checkpoint(work_dir)[0] == str(folder / 'iter_9.pth')
    for text in ('', 'iter_9.pth', '\0'):
        (folder / 'last_checkpoint').write_text(text)
        assert newest_checkpoint(folder)[0] == str(folder / 'iter_9.pth')


def test_nothing_there(tmp_path):
    assert newest_checkpoint(tmp_path) == (None, [])
    assert newest_checkpoint(tmp_path / 'absent') == (None, [])


def test_nothing_that_can_be_used_does_not_start_from_the_beginning(folder):
    for path in folder.glob('*.pth'):
        path.write_bytes(b'')
    with pytest.raises(CheckpointError, match='no checkpoint to resume from.*epoch_1.*iter_9.*recovery_8'):
        newest_checkpoint(folder)
