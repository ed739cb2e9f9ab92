"""Which checkpoint a run goes on from, whatever is wrong with the others."""

import errno
import os
import shutil
import zipfile

import pytest
import torch
import torch.distributed.checkpoint
from mmengine.fileio import LocalBackend, register_backend

from mmcae.checkpoints.pieces import publish
from mmcae.engine.resume import check_kind, check_resumable, newest_checkpoint
from mmcae.utils.errors import CheckpointError, StorageError


def save(path, iteration, written=None, **content):
    meta = dict(iter=iteration, epoch=0) | (dict(mmcae=dict(written=written)) if written else {})
    path.parent.mkdir(exist_ok=True)
    torch.save(dict(meta=meta, state_dict=dict(w=torch.arange(5000.0)), optimizer={}) | content, path)
    return path


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


@pytest.fixture
def in_pieces(folder):
    """Two newer checkpoints in pieces, of FSDP and of DeepSpeed."""
    deepspeed = ('mp_rank_00_model_states.pt', 'zero_pp_rank_0_mp_rank_00_optim_states.pt')
    for name, iteration, pieces in (('recovery_10.pth', 10, ('rank0.pth', 'rank1.pth')), ('epoch_2.pth', 12, deepspeed)):
        for piece in pieces:
            save(folder / 'unfinished.partial' / piece, iteration, written=94.0 + iteration)
        publish(folder / 'unfinished.partial', folder / name)
    return folder


def test_folders_of_pieces_are_checkpoints_too(in_pieces):
    assert newest_checkpoint(in_pieces) == (str(in_pieces / 'epoch_2.pth'), [])
    check_resumable(in_pieces / 'recovery_10.pth')
    (in_pieces / 'epoch_2.pth' / 'mp_rank_00_model_states.pt').unlink()  # interrupted while it was deleted, or copied in part
    found, problems = newest_checkpoint(in_pieces)
    assert found == str(in_pieces / 'recovery_10.pth')
    assert len(problems) == 1 and 'epoch_2.pth is no complete checkpoint: 1 of its 2 pieces' in problems[0]
    path = in_pieces / 'recovery_10.pth' / 'rank1.pth'
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    found, problems = newest_checkpoint(in_pieces)
    assert found == str(in_pieces / 'iter_9.pth') and any('rank1.pth is damaged' in problem for problem in problems)


def test_pieces_belong_to_the_strategy_that_wrote_them(in_pieces):
    fsdp, deepspeed, file = in_pieces / 'recovery_10.pth', in_pieces / 'epoch_2.pth', in_pieces / 'iter_9.pth'
    whole = dict(type='mmcae.FSDPStrategy', state_dict_cfg='full')
    local, ours = dict(type='mmcae.FSDPStrategy'), dict(type='mmcae.DeepSpeedStrategy')
    fitting = [(fsdp, local), (deepspeed, ours), (file, None), (file, whole), (file, dict(type='DDPStrategy'))]
    for path in (fsdp, deepspeed, file):
        for strategy in (None, whole, local, ours, dict(type='DDPStrategy')):
            if (path, strategy) in fitting:
                check_kind(path, strategy)
            else:
                with pytest.raises(CheckpointError, match=rf'{path} is .*resumes from .*: resume with the strategy'):
                    check_kind(path, strategy)


def test_folders_of_fsdp2_are_compared_with_their_checksums(folder):
    weight = torch.arange(5000.0)
    partial, path = folder / 'unfinished.partial', folder / 'epoch_3.pth'
    save(partial / 'training.pth', 18, written=150.0)
    torch.distributed.checkpoint.save(
        {'state_dict.w': weight}, storage_writer=torch.distributed.checkpoint.FileSystemWriter(partial), no_dist=True
    )
    publish(partial, path)
    assert newest_checkpoint(folder) == (str(path), [])
    ours = dict(type='mmcae.FSDP2Strategy')
    check_kind(path, ours)
    for wrong, strategy in ((path, dict(type='mmcae.FSDPStrategy')), (path, None), (folder / 'iter_9.pth', ours)):
        with pytest.raises(CheckpointError, match='resume with the strategy'):
            check_kind(wrong, strategy)
    content = bytearray((path / '__0_0.distcp').read_bytes())
    content[content.index(weight[1000:1010].numpy().tobytes())] ^= 1
    (path / '__0_0.distcp').write_bytes(content)
    found, problems = newest_checkpoint(folder)
    assert found == str(folder / 'iter_9.pth') and any('__0_0.distcp is damaged' in problem for problem in problems)


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


def test_checkpoints_in_another_folder_by_the_configs_out_dir(folder, tmp_path_factory):
    """In which mmengine's hook gives each run a folder of the name of its work dir."""
    work_dir = tmp_path_factory.mktemp('work') / folder.name
    work_dir.mkdir()
    assert newest_checkpoint(work_dir, out_dir=str(folder.parent)) == (str(folder / 'iter_9.pth'), [])
    assert newest_checkpoint(work_dir) == (None, [])
    save(work_dir / 'epoch_1.pth', 6, written=103.0)  # before out_dir was set, or after it was removed
    assert newest_checkpoint(work_dir, out_dir=str(folder.parent))[0] == str(work_dir / 'epoch_1.pth')


@pytest.fixture
def copied(folder, tmp_path_factory):
    """A copy of the folder with mmengine's absolute path in it; the original has gone on."""
    copy = tmp_path_factory.mktemp('work') / 'copy'
    (folder / 'last_checkpoint').write_text(str(folder / 'iter_9.pth'))
    shutil.copytree(folder, copy)
    save(folder / 'iter_12.pth', 12, written=110.0)
    (folder / 'last_checkpoint').write_text(str(folder / 'iter_12.pth'))
    return copy


def test_a_copied_folder_goes_on_from_its_own(folder, copied):
    found, passed_over = newest_checkpoint(copied)
    assert found == str(copied / 'iter_9.pth')
    assert len(passed_over) == 1 and passed_over[0].startswith(f'{folder}/iter_9.pth, which {copied}/last_checkpoint names: it does not')
    assert newest_checkpoint(folder) == (str(folder / 'iter_12.pth'), [])


def test_a_moved_folder_and_one_behind_a_link(folder, copied, tmp_path_factory, monkeypatch):
    """Nothing is passed over there: what last_checkpoint names is gone, or the same folder under another name."""
    moved = copied.rename(copied.with_name('moved'))
    (moved / 'last_checkpoint').write_text(str(copied / 'iter_9.pth'))
    assert newest_checkpoint(moved) == (str(moved / 'iter_9.pth'), [])
    link = tmp_path_factory.mktemp('links') / 'run'
    link.symlink_to(folder)
    assert newest_checkpoint(link) == (str(link / 'iter_12.pth'), [])
    monkeypatch.chdir(folder.parent)
    assert newest_checkpoint(folder.name) == (f'{folder.name}/iter_12.pth', [])
    (folder / 'last_checkpoint').write_text('iter_9.pth')  # ours, relative; a checkpoint linked into the folder belongs to it
    (folder / 'iter_20.pth').symlink_to(save(moved / 'iter_20.pth', 20, written=200.0))
    assert newest_checkpoint(folder) == (str(folder / 'iter_20.pth'), [])


def test_only_another_folder_has_a_checkpoint(folder, tmp_path):
    (tmp_path / 'copy').mkdir()
    (tmp_path / 'copy' / 'last_checkpoint').write_text(str(folder / 'iter_9.pth'))
    with pytest.raises(CheckpointError, match=rf'has no checkpoint of its own.*--resume {folder}/iter_9.pth.*delete last_checkpoint'):
        newest_checkpoint(tmp_path / 'copy')


def test_records_without_a_meaning(folder):
    for text in ('', 'iter_9.pth', 'iter_1.pth', '/gone/iter_9.pth', '\0', 'a\nb'):
        (folder / 'last_checkpoint').write_text(text)
        assert newest_checkpoint(folder) == (str(folder / 'iter_9.pth'), [])
    (folder / 'last_checkpoint').write_bytes(b'\xff\xfe')
    assert newest_checkpoint(folder) == (str(folder / 'iter_9.pth'), [])


class Bucket(LocalBackend):
    """A remote store: `bucket://runs/a` is the folder $BUCKET/runs/a."""

    root = None

    def path(self, name):
        return str(self.root / name.removeprefix('bucket://'))

    def exists(self, filepath):
        return super().exists(self.path(filepath))

    def list_dir_or_file(self, dir_path, **options):
        return super().list_dir_or_file(self.path(dir_path), **options)


@pytest.fixture
def bucket(tmp_path):
    register_backend('bucket', Bucket, prefixes='bucket', force=True)
    Bucket.root = tmp_path / 'bucket'
    (Bucket.root / 'runs/a').mkdir(parents=True)
    return Bucket.root / 'runs'


def test_a_remote_folder(bucket, tmp_path):
    """There last_checkpoint alone tells which one is the newest; without it no training starts over the remains of another."""
    run = tmp_path / 'a'
    run.mkdir()
    assert newest_checkpoint(run, 'bucket://runs') == (None, [])
    assert newest_checkpoint(run, 'bucket://absent') == (None, [])
    for name in ('epoch_1.pth', 'recovery_8.pth'):
        (bucket / 'a' / name).touch()
    with pytest.raises(
        CheckpointError, match=r'bucket://runs/a holds checkpoints \(epoch_1.pth, recovery_8.pth\).*--resume bucket://runs/a'
    ):
        newest_checkpoint(run, 'bucket://runs')
    (run / 'last_checkpoint').write_text('bucket://runs/a/recovery_8.pth')
    assert newest_checkpoint(run, 'bucket://runs') == ('bucket://runs/a/recovery_8.pth', [])
    run = run.rename(tmp_path / 'b')  # whose remote folder would be another
    with pytest.raises(CheckpointError, match='bucket://runs/a/recovery_8.pth in another folder'):
        newest_checkpoint(run, 'bucket://runs')
    save(run / 'epoch_1.pth', 6)
    assert newest_checkpoint(run, 'bucket://runs')[0] == str(run / 'epoch_1.pth')


def test_nothing_there(tmp_path):
    assert newest_checkpoint(tmp_path) == (None, [])
    assert newest_checkpoint(tmp_path / 'absent') == (None, [])


def test_nothing_that_can_be_used_does_not_start_from_the_beginning(folder):
    for path in folder.glob('*.pth'):
        path.write_bytes(b'')
    with pytest.raises(CheckpointError, match='no checkpoint to resume from.*epoch_1.*iter_9.*recovery_8'):
        newest_checkpoint(folder)


def test_a_storage_that_fails_is_no_damage(folder, monkeypatch):
    """It passes, or it stops the run, which would else go on from an earlier checkpoint."""
    real, tries = zipfile.ZipFile, []

    def flaky(file, *args, **kwargs):
        tries.append(file)
        if len(tries) <= failures:
            raise OSError(errno.ESTALE, 'Stale file handle', str(getattr(file, 'name', file)))
        return real(file, *args, **kwargs)

    monkeypatch.setattr(zipfile, 'ZipFile', flaky)
    failures, expected = 2, str(folder / 'iter_9.pth')
    assert newest_checkpoint(folder) == (expected, [])
    monkeypatch.setenv('MMCAE_RETRY_SECONDS', '0')
    failures = 10**9
    with pytest.raises(StorageError, match=r'_\d\.pth cannot be read: Stale file handle'):
        newest_checkpoint(folder)
