"""A run that is started anew in the work dir of an earlier one: --resume never takes the earlier one's checkpoints for its own."""

import shutil
import signal

import pytest
import torch

OPTIONS = ['train_dataloader.num_workers=0', 'randomness.seed=3']


@pytest.fixture
def ended(start):
    """Run a training to its end; returns the exit code and the output."""

    def run(*arguments, options=(), **settings):
        training = start(*arguments, options=[*OPTIONS, *options], **settings)
        return training.wait(), training.text

    return run


@pytest.fixture
def used(ended, tmp_path):
    """A work dir with the two epochs of an earlier run."""
    code, text = ended(options=['train_cfg.max_epochs=2'])
    assert code == 0 and 'of an earlier run' not in text, text
    return tmp_path / 'run'


def kill_at(start, variant, iteration, *arguments):
    hook = dict(type='SignalAt', iteration=iteration, number=int(signal.SIGKILL))
    training = start(*arguments, config=variant(f'default_hooks = dict(signal={hook})'), options=OPTIONS)
    assert training.wait() == -signal.SIGKILL, training.text
    return training.text


def test_killed_before_its_first_checkpoint(used, start, variant, ended, tmp_path):
    newest = used / 'epoch_2.pth'
    assert f'{newest} and older checkpoints are of an earlier run: this one goes on from the beginning' in kill_at(start, variant, 4)
    moved = shutil.copytree(used, tmp_path / 'moved')
    code, text = ended('--resume')
    assert code == 2 and f'error: {newest} is of an earlier run than the last one in {used}, which began from the beginning' in text
    assert f'Go on from the earlier run by --resume {newest}, or begin again without --resume' in text
    several = start('--resume', options=OPTIONS, processes=2)
    assert [training.wait() for training in several] == [2, 2] and 'of an earlier run than the last' in several[0].text
    assert f'{moved}/epoch_2.pth is of an earlier run' in ended('--resume', work_dir=moved)[1]
    code, text = ended('--resume', newest)  # as the line says
    assert code == 0 and 'resumed epoch: 2, iter: 12' in text and (used / 'epoch_3.pth').exists(), text
    code, text = ended('--resume', options=['train_cfg.max_epochs=4'])  # which has left a checkpoint since
    assert code == 0 and f'resumed from {used}/epoch_3.pth' in text, text


def test_killed_after_its_first_checkpoint(used, start, variant, ended, read, differences, tmp_path):
    """Its own is found, whatever else is there, also where the clock of the earlier run was ahead."""
    for name in ('epoch_1.pth', 'epoch_2.pth'):
        content = read(used / name)
        content['meta']['mmcae']['written'] += 1e6
        (used / name).unlink()
        torch.save(content, used / name)
    kill_at(start, variant, 8)
    code, text = ended('--resume')
    assert code == 0 and f'resumed from {used}/epoch_1.pth' in text and 'resumed epoch: 1, iter: 6' in text, text
    assert ended(work_dir=tmp_path / 'straight')[0] == 0
    assert differences(read(tmp_path / 'straight/epoch_3.pth'), read(used / 'epoch_3.pth')) == []


def test_killed_after_it_went_back(used, start, variant, ended):
    """To a checkpoint that was named, and is not the newest."""
    assert f'this one goes on from {used}/epoch_1.pth' in kill_at(start, variant, 8, '--resume', used / 'epoch_1.pth')
    code, text = ended('--resume')
    assert code == 2 and f'which began from {used}/epoch_1.pth' in text and f'or begin again by --resume {used}/epoch_1.pth' in text
    (used / 'epoch_2.pth').unlink()
    code, text = ended('--resume')
    assert code == 0 and 'resumed epoch: 1, iter: 6' in text and not (used / 'last_start.json').exists(), text


def test_killed_in_a_folder_of_its_own(start, variant, ended, tmp_path):
    """It starts again from the beginning, as torchrun and Slurm have it do."""
    kill_at(start, variant, 4, '--resume')
    code, text = ended('--resume')
    assert code == 0 and 'Nothing to resume' in text and 'earlier run' not in text, text
    assert not (tmp_path / 'run/last_start.json').exists()
