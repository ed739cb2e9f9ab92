"""From which checkpoint a run goes on: the newest one that is complete, whatever has happened to the others."""

import json
import os
import zipfile
import zlib
from pathlib import Path

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.fileio import get_file_backend

from ..checkpoints import damaged, read_checkpoint
from ..checkpoints.pieces import FIRST, METADATA, TRAINING, first_piece, is_sharded, pieces_of
from ..checkpoints.reading import read_sharded
from ..utils.errors import CheckpointError, StorageError
from ..utils.files import patiently, write_file
from .launch import is_first

RECORD = 'last_checkpoint'  # mmengine's file in the work dir
START = 'last_start.json'  # ours, beside it: see record_start


def choose_checkpoint(cfg):
    """Decide which checkpoint a run goes on from: the one that the config names, or the newest whole one; the first process looks for all.

    Args:
        cfg (Config): With a work_dir. Its `load_from` is set, and `resume` to whether there is one.

    Raises:
        CheckpointError: In all processes: it cannot be used, or see :func:`newest_of_last_run`.
    """
    cfg.load_from, passed_over = by_first_process(find_checkpoint, cfg)
    cfg.resume = cfg.load_from is not None
    if is_first():
        for problem in passed_over:
            print(f'Not resumed from: {problem}.', flush=True)
        if not cfg.resume:
            print(f'Nothing to resume in {cfg.work_dir} yet: starting from the beginning.', flush=True)


def by_first_process(find, *arguments):
    """What a function finds in the first process, for all of them; a CheckpointError too."""
    told = [None, None]
    if is_main_process():
        try:
            told = [find(*arguments), None]
        except (CheckpointError, StorageError, OSError) as error:
            told = [None, str(error)]
    broadcast_object_list(told)
    found, refusal = told
    if refusal:
        raise CheckpointError(refusal)
    return found


def find_checkpoint(cfg):
    """The checkpoint that a run goes on from, None where there is none yet, and what was passed over.

    Raises:
        CheckpointError: It cannot be used, or see :func:`newest_of_last_run`.
    """
    found, passed_over = cfg.get('load_from'), []
    if found is None:
        hook = cfg.get('default_hooks', {}).get('checkpoint') or {}
        found, passed_over = newest_of_last_run(cfg.work_dir, hook.get('out_dir'), hook.get('backend_args'))
    elif '://' not in found:
        found = os.path.expanduser(found)
        check_resumable(found)
    if found is not None and '://' not in found:
        check_kind(found, cfg.get('strategy') if cfg.get('runner_type') == 'FlexibleRunner' else None)
    return found, passed_over


def newest_of_last_run(work_dir, out_dir=None, backend_args=None):
    """As :func:`newest_checkpoint`, of the last run that was started in a folder.

    Raises:
        CheckpointError: That run has left none, and those that are there are of an earlier one.
    """
    found, passed_over = newest_checkpoint(work_dir, out_dir, backend_args)
    file = Path(work_dir, START)
    if found is None or '://' in found or not file.exists():
        return found, passed_over
    start = json.loads(file.read_text())
    begun_from = start['begun_from'] and os.path.join(work_dir, start['begun_from'])
    if age_of(found) <= tuple(start['newest']) and not is_same(found, begun_from):
        first, again = (f'from {begun_from}', f'by --resume {begun_from}') if begun_from else ('from the beginning', 'without --resume')
        unusable = f' that can be used: {"; ".join(passed_over)}' if passed_over else ''
        raise CheckpointError(
            f'{found} is of an earlier run than the last one in {work_dir}, which began {first} and has left no checkpoint{unusable}. Go '
            f'on from the earlier run by --resume {found}, or begin again {again}'
        )
    return found, passed_over


def record_start(work_dir, folders, begun_from):
    """Write down, at the start of a run, which checkpoints are of an earlier one: --resume must not take them for its own.

    Args:
        work_dir (str | Path): Of the run.
        folders (Iterable[str | Path]): Local ones, where its checkpoints are.
        begun_from (str | Path | None): The checkpoint that it goes on from.

    Returns:
        tuple[Path, float] | None: The newest that is there, and when it was written; None where there is none, or the run goes on from it.
    """
    aged, _ = with_ages(map(Path, folders))
    age, newest = max(aged, default=(None, None))
    file = Path(work_dir, START)
    if newest is None or is_same(newest, begun_from):
        file.unlink(missing_ok=True)
        return None
    write_file(file, json.dumps(dict(newest=age, begun_from=begun_from and portable(begun_from, work_dir))))
    return newest, age[0]


def is_same(path, other):
    """Whether two paths, or None, lead to one checkpoint."""
    return other is not None and os.path.realpath(path) == os.path.realpath(other)


def portable(path, work_dir):
    """A path as files in a work dir name it: relative to that if it lies there, so that a copy of the folder has its own."""
    if '://' in str(path):
        return str(path)
    relative = os.path.relpath(path, work_dir)
    return os.path.abspath(path) if relative.startswith(os.pardir) else relative


def newest_checkpoint(work_dir, out_dir=None, backend_args=None):
    """Find the checkpoint that was written last and is whole, among all that a training left in its own folder.

    mmengine's file `last_checkpoint` is not asked: a run that was killed has not written it, or has written it for a file that the disk
    lost; and in a copied or moved folder it may name a checkpoint of the original. Only in a remote folder, which cannot be looked through
    that cheaply, it tells which one is the newest.

    Args:
        work_dir (str | Path): Of the run.
        out_dir (str, optional): The CheckpointHook's, below which the run has a folder of the work dir's name; local or remote.
        backend_args (dict, optional): Of that hook, for a remote folder.

    Returns:
        tuple[str | None, list[str]]: The checkpoint's path, None where there is none, and each that was passed over, with the reason: it
            is newer and damaged, so damaged that its age is unknown, or named by `last_checkpoint` and outside of the run's folders.

    Raises:
        CheckpointError: There are checkpoints, and none of them can be used, or it is not known which one is the newest. Or only another
            folder has one.
    """
    recorded, folders = recorded_checkpoint(work_dir), [str(work_dir)]
    if out_dir is not None:
        folders.append(own_folder(work_dir, out_dir))
    remote = [folder for folder in folders if '://' in folder]
    for folder in remote:
        found = newest_remote(work_dir, folder, recorded, backend_args)
        if found:
            return found, []
    found, passed_over = newest_local({os.path.realpath(folder): Path(folder) for folder in folders if folder not in remote}.values())
    if recorded and outside(recorded, folders):
        if not found:
            raise CheckpointError(
                f'{work_dir} has no checkpoint of its own, but {Path(work_dir, RECORD)} names {recorded} in another folder: go on from '
                f'that by --resume {recorded}, copy it here, or delete {RECORD} to start from the beginning'
            )
        passed_over.append(f'{recorded}, which {Path(work_dir, RECORD)} names: it does not belong to this work dir, but to another one')
    return found, passed_over


def own_folder(work_dir, out_dir):
    """Where mmengine's CheckpointHook with such an `out_dir` writes to."""
    work_dir = os.path.abspath(work_dir)
    return work_dir if out_dir == work_dir else os.path.join(out_dir, os.path.basename(work_dir))


def recorded_checkpoint(work_dir):
    """The path that `last_checkpoint` holds, None if it holds none; ours is relative to the work dir, mmengine's is not."""
    try:
        text = Path(work_dir, RECORD).read_text(errors='replace').strip()
    except OSError:
        return None
    if not text or '\0' in text:
        return None
    return text if '://' in text else os.path.join(work_dir, text)


def outside(checkpoint, folders):
    """Whether a checkpoint exists and lies in none of these folders, whatever links lead there."""
    if '://' in checkpoint:
        return not any(checkpoint.startswith(f'{folder}/') for folder in folders)
    return os.path.exists(checkpoint) and os.path.realpath(os.path.dirname(checkpoint)) not in map(os.path.realpath, folders)


def newest_remote(work_dir, folder, recorded, backend_args):
    """The newest checkpoint in a remote folder, as recorded; None where there is none."""
    backend = get_file_backend(folder, backend_args=backend_args)
    if recorded and not outside(recorded, (folder,)) and backend.exists(recorded):
        return recorded
    try:
        there = sorted(backend.list_dir_or_file(folder, list_dir=False, suffix='.pth'))
    except (NotImplementedError, FileNotFoundError):
        there = []
    if there:
        raise CheckpointError(
            f'{folder} holds checkpoints ({", ".join(there[-5:])}), but {Path(work_dir, RECORD)} does not tell which one is the newest: '
            f'name it by --resume {folder}/NAME'
        )
    return None


def newest_local(folders):
    """The newest whole checkpoint in some folders, None where there is none, and what is wrong with those that cannot be used."""
    found, unusable = with_ages(folders)
    for _, path in sorted(found, reverse=True):
        try:
            check_whole(path)
        except CheckpointError as error:
            unusable.append(str(error))
        else:
            return str(path), unusable
    if unusable:
        places = ' and '.join(sorted(map(str, folders)))
        raise CheckpointError(
            f'{places} holds no checkpoint to resume from: {"; ".join(unusable)}. Copy an earlier one there, or move these away'
        )
    return None, []


def with_ages(folders):
    """The checkpoints in some folders from which a training could go on, each behind its age, and what is wrong with damaged ones."""
    found, unusable = [], []
    for path in sorted(path for folder in folders for path in folder.glob('*.pth')):
        try:
            age = age_of(path)
        except CheckpointError as error:
            unusable.append(str(error))
        else:
            found += [(age, path)] if age else []
    return found, unusable


def check_resumable(path):
    """Refuse a checkpoint from which a training cannot go on.

    Args:
        path (str | Path): A file, or a folder of pieces.

    Raises:
        CheckpointError: It is damaged, incomplete, or holds weights alone.
    """
    if age_of(path) is None:
        raise CheckpointError(f'{path} holds weights alone, no state of a training: start from them by load_from or init_cfg')
    check_whole(path)


def check_kind(path, strategy):
    """Refuse a checkpoint that the strategy of a training cannot read.

    Args:
        path (str | Path): A file, or a folder of pieces.
        strategy (dict | None): The config's for FlexibleRunner; None for the plain Runner.

    Raises:
        CheckpointError: It was written by another one.
    """
    strategy, piece = strategy or {}, first_piece(path)
    kinds = {FIRST[0]: 'pieces of FSDP', TRAINING: 'pieces of FSDP2', METADATA: 'pieces of another program'}
    written = 'one file' if piece is None else kinds.get(piece.name, 'pieces of DeepSpeed')
    reads = 'one file'
    if 'DeepSpeed' in str(strategy.get('type')):
        reads = 'pieces of DeepSpeed'
    elif 'FSDP2' in str(strategy.get('type')):
        reads = 'pieces of FSDP2'
    elif 'FSDP' in str(strategy.get('type')) and 'FULL' not in str(strategy.get('state_dict_cfg', 'local')).upper():
        reads = 'pieces of FSDP'
    if written != reads:
        raise CheckpointError(
            f"{path} is {written}, but the config's {strategy.get('type', 'Runner')} resumes from {reads}: resume with the strategy, and "
            'its state_dict_cfg, that the run was trained with'
        )


def age_of(path):
    """By what checkpoints are sorted: when they were written, and after how many iterations; None if no training can go on from it."""
    file = Path(path)
    if file.is_dir():
        pieces_of(file)  # complete as far as names and sizes tell
        file = first_piece(file)
    content = read_checkpoint(file, mmap=True)
    meta = content.get('meta') if isinstance(content, dict) else None
    if not isinstance(meta, dict) or 'iter' not in meta or 'optimizer' not in content:
        return None
    written = meta.get('mmcae', {}).get('written')
    return file.stat().st_mtime if written is None else written, meta['iter']


def check_whole(path):
    """Compare a checkpoint with the checksums in it, which torch.load does not.

    Args:
        path (str | Path): A file of torch.save, or a folder of them.

    Raises:
        CheckpointError: It is incomplete, cut off, or some of its bytes have changed.
        StorageError: It cannot be read for reasons that tell nothing about its content.
    """
    files = pieces_of(path) if Path(path).is_dir() else [Path(path)]
    if is_sharded(path):
        patiently(lambda: read_sharded(path).check(), path)
        files = [file for file in files if file.name == TRAINING]
    for file in files:
        try:
            wrong = patiently(lambda file=file: first_wrong(file), file)
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError) as error:
            raise damaged(file, error) from error
        if wrong:
            raise CheckpointError(f'{file} is damaged: its part {wrong} does not have its checksum')


def first_wrong(file):
    """The first part of a zip file that does not have its checksum, or None."""
    with zipfile.ZipFile(file) as archive:
        return archive.testzip()
