"""Pack image files into shards: check every file, leave out what is of no use and say so, go on after an interruption."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ...utils.errors import DataError, StorageError
from ...utils.files import UNFINISHED, remove_unfinished
from ...utils.locks import LOCK, locked
from ...utils.processes import interruptible
from ...utils.progress import Display, duration
from ..transforms.image_file import content_of
from ..transforms.loading import read_image
from .bad_files import printable
from .shards import MANIFEST, Manifest, ShardReader, ShardWriter, verify_shard

LEFT_OUT = 'left_out.tsv'
UNREADABLE, BACKGROUND = 'unreadable', 'background'
DARK = 0.1  # pixels below this brightness have no colour worth the name: the black around a slide is no tissue
LOOK_AT = 128  # pixels: shorter side of the copy on which tissue is looked for, or up to twice that


def tissue_share(image: np.ndarray, saturation: float) -> float:
    """Share of an image's area that is coloured: stained tissue is, glass and the black around a slide are not.

    Measured on a reduced copy, whose pixels are averages: the camera's noise is no colour.

    Args:
        image: uint8 (H, W, 3), RGB.
        saturation: A pixel counts from this saturation on: (max - min) / max of its channels, in [0, 1].

    Returns:
        In [0, 1].
    """
    small = Image.fromarray(image).reduce(max(1, min(image.shape[:2]) // LOOK_AT))
    pixels = np.asarray(small, np.float32)
    brightest = pixels.max(axis=-1)
    coloured = brightest - pixels.min(axis=-1) >= saturation * np.maximum(brightest, 1)
    return float((coloured & (brightest >= 255 * DARK)).mean())


class SourceFiles(Dataset):
    """Reads and checks image files.

    Args:
        root: Their folder.
        paths: Relative to it.
        min_tissue: Leave out images with a smaller :func:`tissue_share`; 0 keeps all.
        saturation: For :func:`tissue_share`.
        channels, white: What mmcae.LoadImage will be told.
    """

    def __init__(
        self,
        root: Path,
        paths: Sequence[str],
        min_tissue: float = 0.0,
        saturation: float = 0.06,
        channels: int = 3,
        white: float | None = None,
    ):
        self.root = root
        self.paths = paths
        self.min_tissue = min_tissue
        self.saturation = saturation
        self.channels, self.white = channels, white

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[str, bytes | None, str, str]:
        """Path, bytes (None if it is left out), why it is left out, and what exactly is wrong with it.

        Raises:
            StorageError: It cannot be read for reasons that tell nothing about its content.
        """
        path = self.paths[i]
        try:
            data = content_of(self.root / path)
            image = read_image(path, self.channels, data, self.white)
        except StorageError:  # the file may be all right, and is asked for again by the next run
            raise
        except DataError as error:
            return path, None, UNREADABLE, str(error.__cause__ or error)
        share = tissue_share(image, self.saturation) if self.min_tissue else 1.0
        if share < self.min_tissue:
            return path, None, BACKGROUND, f'tissue on {share:.3f} of it'
        return path, data, '', ''


def pack(files: SourceFiles, folder: Path, settings: dict, shard_bytes: int, workers: int, max_bad_files: float) -> Manifest:
    """Pack image files into a folder, or go on where an interrupted run of the same kind stopped.

    The result depends neither on the number of workers nor on interruptions.

    Args:
        files: What to pack, in the order in which it will lie in the shards.
        folder: Where to: new, empty, or of an earlier run.
        settings: What else makes this packing different from others; kept in the manifest.
        shard_bytes: Size from which on a shard is full.
        workers: Processes that read and check the files.
        max_bad_files: The largest share of unreadable files that is acceptable.

    Returns:
        The manifest of the complete folder.

    Raises:
        DataError: The folder holds something else, more files are unreadable than is acceptable, or no image is left.
        StorageError: The storage fails; the same call goes on from there.
    """
    paths = hashlib.sha256('\0'.join(files.paths).encode(errors='surrogateescape')).hexdigest()
    checks = dict(min_tissue=files.min_tissue, saturation=files.saturation, channels=files.channels)
    checks |= dict(white=files.white) if files.white is not None else {}
    settings = dict(settings, paths=paths, shard_bytes=shard_bytes, **checks)
    with locked(folder), interruptible():
        remove_unfinished(folder)
        manifest = resume(folder, settings)
        if not manifest.complete:
            fill(manifest, folder, files, shard_bytes, workers)
            check_left_out(manifest, folder, max_bad_files)
            manifest.complete = True
            manifest.save(folder)
    return manifest


def resume(folder: Path, settings: dict) -> Manifest:
    """The manifest of an earlier run of the same kind, or a new one; what that run began and did not finish is removed.

    Raises:
        DataError: The folder holds something else.
    """
    if (folder / MANIFEST).exists():
        manifest = Manifest.load(folder)
        changed = [
            'the list of files' if name == 'paths' else f'{name} ({manifest.settings.get(name)} then, {value} now)'
            for name, value in settings.items()
            if manifest.settings.get(name) != value
        ]
        if changed:
            raise DataError(f'{folder} was packed otherwise: {", ".join(changed)} changed since. Delete it or choose another folder')
    else:
        names = sorted(file.name for file in folder.iterdir())
        foreign = [name for name in names if name not in (LOCK, LEFT_OUT) and not UNFINISHED.fullmatch(name)]
        if foreign:
            raise DataError(f'{folder} is not empty and was not made by this tool ({foreign[0]} is in it). Choose another folder')
        manifest = Manifest(settings=settings)
        manifest.save(folder)
    known = {shard['name'] for shard in manifest.shards}
    for file in folder.glob('shard-*'):
        if file.name.split('.')[0] not in known or file.suffix == '.part':
            file.unlink()
    return manifest


def fill(manifest: Manifest, folder: Path, files: SourceFiles, shard_bytes: int, workers: int):
    """Pack the files that are not done with, shard by shard; the manifest is written after each."""
    display, began, before = Display(), time.time(), manifest.consumed
    if before:
        display.event(f'{before:,} of {len(files):,} files were done with before: going on from there.')
    counts, consumed, writer = dict(manifest.left_out), before, None
    with open(folder / LEFT_OUT, 'ab') as left_out:
        left_out.truncate(manifest.left_out_bytes)

        def finish_shard():
            nonlocal writer
            left_out.flush()
            os.fsync(left_out.fileno())
            if writer:
                manifest.shards.append(writer.close())
            manifest.consumed, manifest.left_out = consumed, dict(counts)
            manifest.left_out_bytes = os.fstat(left_out.fileno()).st_size
            manifest.save(folder)
            writer = None

        def progress():
            speed = (consumed - before) / max(time.time() - began, 1e-9)
            size = manifest.bytes + (writer.bytes if writer else 0)
            shards = len(manifest.shards) + bool(writer)
            left = duration((len(files) - consumed) / speed)
            return f'{consumed:,} of {len(files):,} files, {size / 1e9:.2f} GB in {shards} shards, {speed:,.0f} files/s, {left} left'

        try:
            for path, data, reason, detail in read_ahead(files, before, workers):
                consumed += 1
                if data is None:
                    counts[reason] = counts.get(reason, 0) + 1
                    left_out.write(f'{reason}\t{printable(path)}\t{printable(detail)}\n'.encode())
                else:
                    writer = writer or ShardWriter(folder, f'shard-{len(manifest.shards):06d}', manifest.images)
                    writer.add(path, data)
                    if writer.bytes >= shard_bytes:
                        finish_shard()
                display.status(progress)
            finish_shard()
        finally:
            if writer:
                writer.abandon()
            display.close()


def read_ahead(files: SourceFiles, start: int, workers: int) -> Iterator[tuple]:
    """What :class:`SourceFiles` says of the files from `start` on, in their order; other processes are a few dozen ahead."""
    for some in DataLoader(files, batch_size=8, sampler=range(start, len(files)), num_workers=workers, collate_fn=list):
        yield from some


def check_left_out(manifest: Manifest, folder: Path, max_bad_files: float):
    """Make sure that enough is left.

    Raises:
        DataError: More files are unreadable than is acceptable, or nothing is left.
    """
    total, bad = manifest.consumed, manifest.left_out.get(UNREADABLE, 0)
    if bad <= max_bad_files * total and manifest.images:
        return
    if bad <= max_bad_files * total:
        raise DataError(f'None of the {total:,} images is left: {folder / LEFT_OUT} says why. Lower --min-tissue or --saturation')
    with open(folder / LEFT_OUT) as lines:
        _, path, detail = next(line for line in lines if line.startswith(UNREADABLE)).rstrip('\n').split('\t', 2)
    raise DataError(
        f'{bad:,} of {total:,} files cannot be read as images, such as {path} ({detail}); {folder / LEFT_OUT} lists them. '
        f'Accept more with --max-bad-files SHARE, and the same command goes on from here; or repair or remove them, delete {folder}, and '
        'start again'
    )


def verify(folder: Path, tell: Callable[[str], None]) -> tuple[int, list[str]]:
    """Read all of a packed folder again.

    Args:
        folder: A packed folder.
        tell: Called with the progress after each shard.

    Returns:
        The number of images, and what is wrong: one line for each damaged shard.

    Raises:
        DataError: The folder is not complete, or a shard is missing or has another size.
        StorageError: A shard cannot be read for reasons that tell nothing about its content.
    """
    reader, damaged, began, done = ShardReader(folder), [], time.time(), 0
    for number, (name, size) in enumerate(zip(reader.names, reader.sizes, strict=True), 1):
        try:
            verify_shard(folder / f'{name}.tar', reader.index.part(reader.first[number - 1], reader.first[number]))
        except StorageError:
            raise
        except DataError as error:
            damaged.append(str(error))
        done += size
        left = (time.time() - began) / done * (sum(reader.sizes) - done)
        tell(f'{number} of {len(reader.names)} shards read again, {duration(left)} left')
    return len(reader), damaged
