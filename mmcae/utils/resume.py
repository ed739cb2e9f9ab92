"""From which checkpoint a run goes on: the newest one that is complete, whatever has happened to the others."""

import zipfile
import zlib
from pathlib import Path

from ..checkpoints import damaged, read_checkpoint
from .errors import CheckpointError


def newest_checkpoint(work_dir):
    """Find the checkpoint that was written last and is whole, among all that a training left in its folder.

    mmengine's file `last_checkpoint` says only in which other folder to look besides: a run that was killed has not written it, or has
    written it for a file that the disk lost.

    Args:
        work_dir (str | Path): Of the run.

    Returns:
        tuple[str | None, list[str]]: The checkpoint's path, None where there is none, and what is wrong with each file that cannot be used
            although it is newer, or so damaged that its age is unknown.

    Raises:
        CheckpointError: There are checkpoints, and none of them can be used.
    """
    recorded = Path(work_dir) / 'last_checkpoint'
    last = Path(recorded.read_text(errors='replace').strip()) if recorded.is_file() else Path()
    if last.name and last.is_dir():  # written by DeepSpeed, as a folder of many files
        return str(last), []
    folders = {Path(work_dir), last.parent} if last.name else {Path(work_dir)}
    found, unusable = [], []
    for path in sorted(path for folder in folders for path in folder.glob('*.pth')):
        try:
            age = age_of(path)
        except CheckpointError as error:
            unusable.append(str(error))
        else:
            found += [(age, path)] if age else []
    for _, path in sorted(found, reverse=True):
        try:
            check_whole(path)
        except CheckpointError as error:
            unusable.append(str(error))
        else:
            return str(path), unusable
    if unusable:
        raise CheckpointError(
            f'{work_dir} holds no checkpoint to resume from: {"; ".join(unusable)}. Copy an earlier one there, or move these away'
        )
    return None, []


def check_resumable(path):
    """Refuse a checkpoint from which a training cannot go on.

    Args:
        path (str | Path): A file.

    Raises:
        CheckpointError: It is damaged, or holds weights alone.
    """
    if age_of(path) is None:
        raise CheckpointError(f'{path} holds weights alone, no state of a training: start from them by load_from or init_cfg')
    check_whole(path)


def age_of(path):
    """By what checkpoints are sorted: when they were written, and after how many iterations; None if no training can go on from it."""
    content = read_checkpoint(path, mmap=True)
    meta = content.get('meta') if isinstance(content, dict) else None
    if not isinstance(meta, dict) or 'iter' not in meta or 'optimizer' not in content:
        return None
    written = meta.get('mmcae', {}).get('written')
    return Path(path).stat().st_mtime if written is None else written, meta['iter']


def check_whole(path):
    """Compare a checkpoint with the checksums in it, which torch.load does not.

    Args:
        path (str | Path): A file of torch.save.

    Raises:
        CheckpointError: It is cut off, or some of its bytes have changed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError) as error:
        raise damaged(Path(path), error) from error
    if wrong:
        raise CheckpointError(f'{path} is damaged: its part {wrong} does not have its checksum')
