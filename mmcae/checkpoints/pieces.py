"""Checkpoints in pieces: a folder with one file for each process, as FSDP (`state_dict_cfg='local'`), FSDP2 and DeepSpeed write them.

Like a file of its own such a folder appears whole or not at all: the processes write into a folder of another name, which then gets a list
of its pieces and is renamed.
"""

import io
import json
import os
import shutil
import threading
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from ..utils.errors import CheckpointError
from ..utils.files import sync_folder, write_file

LIST = 'pieces.json'  # name and size in bytes of each piece
TRAINING, METADATA = 'training.pth', '.metadata'  # of FSDP2: what is no tensor, and DCP's list of tensors (sharded.py)
# The piece that tells the state of the training: FSDP's, DeepSpeed's, DeepSpeed's of ZeRO stage 3, and FSDP2's. DCP alone has none.
FIRST = ('rank0.pth', 'mp_rank_00_model_states.pt', 'zero_pp_rank_0_mp_rank_00_model_states.pt', TRAINING, METADATA)
UNFINISHED, DELETED = 'unfinished.partial', 'deleted.partial'  # one of each in a folder, where one training alone writes


def first_piece(folder: str | Path) -> Path | None:
    """The file of a checkpoint in pieces that says how far the training is; None if the folder is none."""
    return next((Path(folder) / name for name in FIRST if (Path(folder) / name).is_file()), None)


def is_sharded(folder: str | Path) -> bool:
    """Whether it is a folder of torch.distributed.checkpoint."""
    return (Path(folder) / METADATA).is_file()


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
        return sorted(path for path in folder.iterdir() if path.suffix in ('.pth', '.pt', '.distcp') or path.name == METADATA)
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


def read_pieces(folder: str | Path, read: Callable[[Path], dict]) -> dict:
    """What a checkpoint in pieces holds, as a file of its own would hold it, without the optimizer.

    Args:
        folder: The checkpoint.
        read: Reads a piece.

    Returns:
        Its first piece, with whole tensors.

    Raises:
        CheckpointError: Pieces are missing, or DeepSpeed has shared out the parameters (ZeRO stage 3).
    """
    files, first = pieces_of(folder), first_piece(folder)
    content = read(first)
    content.pop('optimizer', None)
    if first.name == FIRST[2]:
        raise CheckpointError(f'{folder} has its parameters in pieces of ZeRO stage 3: put them together by zero_to_fp32.py of DeepSpeed')
    if first.name == FIRST[0] and 'shapes' in content:
        # Each process has a part of the flattened tensor, in the order of their ranks; some have nothing of it.
        states = [content['state_dict'], *(read(folder / f'rank{rank}.pth')['state_dict'] for rank in range(1, len(files)))]
        for name, shape in content.pop('shapes').items():
            if tuple(states[0][name].shape) != tuple(shape):
                content['state_dict'][name] = torch.cat([state[name].flatten() for state in states]).reshape(shape)
    return content


def write_piece(content, path: str | Path):
    """Write a file by torch.save and force it onto the disk.

    Raises:
        OSError: Such as a full disk; it names the file.
    """
    with io.BytesIO() as buffer:
        torch.save(content, buffer)
        write_file(path, buffer.getbuffer())


def publish(partial: Path, path: Path):
    """Give what has been written completely, a file or a folder of pieces, its name.

    Args:
        partial: As it is named now.
        path: Its name from now on, in the same folder. What has that name is replaced.
    """
    if partial.is_dir():
        sizes = {piece.name: piece.stat().st_size for piece in sorted(partial.iterdir()) if piece.is_file()}
        write_file(partial / LIST, json.dumps(sizes, indent=1) + '\n')
    else:
        sync(partial)
    # Neither is a folder replaced in one step, nor a file by one. What was there stays as long as can be.
    with out_of_the_way(path) if path.is_dir() or partial.is_dir() and path.exists() else nullcontext():
        partial.replace(path)
        sync_folder(path.parent)


def remove(path: Path):
    """Delete a file or folder; of a folder nothing is left under its name, whatever ends the process meanwhile."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
    elif path.name != DELETED:
        with out_of_the_way(path):
            pass
    else:
        shutil.rmtree(path)


_aside = threading.Lock()  # a strategy publishes in the background what it saves, while others are deleted


@contextmanager
def out_of_the_way(path: Path):
    """Free the name of a file or folder, and delete it afterwards."""
    aside = path.with_name(DELETED)
    with _aside:
        remove(aside)
        path.replace(aside)
        yield
        remove(aside)


def remove_unfinished_pieces(folder: str | Path):
    """Remove what a killed training has left of checkpoints that it was writing or deleting."""
    for name in (UNFINISHED, DELETED):
        remove(Path(folder) / name)


def sync(path: Path):
    """Force a file onto the disk."""
    with open(path, 'rb') as file:
        os.fsync(file.fileno())
