"""Checkpoints in pieces: a folder with one file for each process, as FSDP (`state_dict_cfg='local'`) and DeepSpeed write them.

Like a file of its own such a folder appears whole or not at all: the processes write into a folder of another name, which then gets a list
of its pieces and is renamed.
"""

import io
import json
import os
import shutil
from pathlib import Path

import torch

from .errors import CheckpointError

LIST = 'pieces.json'  # name and size in bytes of each piece
# The piece that tells the state of the training: FSDP's, DeepSpeed's, and DeepSpeed's of ZeRO stage 3.
FIRST = ('rank0.pth', 'mp_rank_00_model_states.pt', 'zero_pp_rank_0_mp_rank_00_model_states.pt')
UNFINISHED = 'unfinished.partial'


def first_piece(folder: str | Path) -> Path | None:
    """The file of a checkpoint in pieces that says how far the training is; None if the folder is none."""
    return next((Path(folder) / name for name in FIRST if (Path(folder) / name).is_file()), None)


def pieces_of(folder: str | Path) -> list[Path]:
    """All pieces of a checkpoint.

    Args:
        folder: The checkpoint. One without a list of its pieces, as mmengine and DeepSpeed write it, has those that are there.

    Returns:
        Files that exist and have the size they were written with.

    Raises:
        CheckpointError: Some are missing or cut off.
    """
    folder = Path(folder)
    if not (folder / LIST).exists():
        if first_piece(folder) is None:
            raise CheckpointError(f'{folder} is no complete checkpoint: it has no {" and no ".join(FIRST)}')
        return sorted(path for path in folder.iterdir() if path.suffix in ('.pth', '.pt'))
    try:
        sizes = json.loads((folder / LIST).read_text())
        pieces = {folder / name: int(size) for name, size in sizes.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f'{folder / LIST} is damaged: {error}') from error
    wrong = [path.name for path, size in pieces.items() if not path.is_file() or path.stat().st_size != size]
    if wrong:
        raise CheckpointError(
            f'{folder} is no complete checkpoint: {len(wrong)} of its {len(pieces)} pieces are missing or cut off, such as {wrong[0]}'
        )
    return list(pieces)


def write_piece(content, path: str | Path):
    """Write a file by torch.save and force it onto the disk.

    Raises:
        OSError: Such as a full disk; it names the file.
    """
    with io.BytesIO() as buffer:
        torch.save(content, buffer)
        try:
            with open(path, 'wb') as file:
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error


def publish(partial: Path, path: Path):
    """Give what has been written completely, a file or a folder of pieces, its name.

    Args:
        partial: As it is named now.
        path: Its name from now on, in the same folder. What has that name is replaced.
    """
    if partial.is_dir():
        sizes = {piece.name: piece.stat().st_size for piece in sorted(partial.iterdir()) if piece.is_file()}
        (partial / LIST).write_text(json.dumps(sizes, indent=1) + '\n')
        for name in (LIST, '.'):
            sync(partial / name)
    else:
        sync(partial)
    if path.is_dir():  # a folder that is not empty cannot be replaced in one step
        remove(path)
    partial.replace(path)
    sync(path.parent)


def remove(path: Path):
    """Delete a file or folder; of a folder nothing is left under its name, whatever ends the process meanwhile."""
    if path.is_dir() and not path.is_symlink():
        doomed = path.with_name(f'{path.name}.partial')
        shutil.rmtree(doomed, ignore_errors=True)
        path.replace(doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path):
    """Force a file, or the names in a folder, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
