"""Features of a whole folder of images, in a file: `mmcae embed`, resumable and in flat memory."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

import numpy as np
import torch
from mmengine.device import get_device
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..checkpoints import weights_checksum
from ..datasets.requested_batch import requested_batch
from ..datasets.sources.bad_files import printable
from ..datasets.sources.shards import MANIFEST, size_of
from ..datasets.transforms.loading import read_image
from ..registry import DATASETS
from ..utils import remote
from ..utils.errors import ConfigError, DataError, StorageError
from ..utils.files import atomic_file, write_file
from ..utils.locks import LOCK, locked
from ..utils.progress import Display, duration
from .feature_files import check_format, read_features, write_features
from .features import evaluating, load_encoder_and_view
from .view import View

FEATURES = {'cls': 'cls_token', 'mean': 'avg_featmap', 'patch': 'raw'}  # their names in files, and as CAEViT's `out_type`
DTYPES = ('float32', 'float16')
PIECE_ROWS, PIECE_BYTES = 4096, 128 * 2**20  # the most that is kept in memory, and lost by an interruption
PLAN = 'plan.json'


def embed(
    source: str | Path | Mapping,
    folder: str | Path,
    out: str | Path | None = None,
    features: str | Sequence[str] = 'cls',
    img_size: int | tuple[int, int] | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    device: str | torch.device | None = None,
    amp: bool = False,
    dtype: str = 'float32',
    list_file: str | Path | None = None,
    overwrite: bool = False,
    **settings,
) -> Path | dict[str, np.ndarray]:
    """Features of all images of a folder: `mmcae.embed('encoder.pth', 'images', 'features.npz')`.

    Pieces of the result are kept in `OUT.pieces` until it is complete; the same call goes on from there. Files that cannot be read are left
    out, and listed in `OUT.bad_files.tsv`. Under torchrun each process takes its share of the pieces.

    Args:
        source: A checkpoint of mmcae, the authors, mmpretrain or timm's BEiT.
        folder: With images in any tree below it; or a folder of `mmcae pack`.
        out: The file to write: .npz, .parquet (needs pyarrow) or .zarr (needs zarr), see :mod:`mmcae.apis.feature_files`.
        features: 'cls', the cls token; 'mean', the final norm of the mean over the patches; 'patch', all patch tokens; or several.
        img_size: See :func:`mmcae.apis.extract_features`; `settings` too.
        batch_size: Images per forward pass.
        workers: Processes that read images. Defaults to the number of cores with a GPU, and to one less without.
        device: Defaults to a GPU where there is one.
        amp: Mixed precision: bfloat16 where the device has it, else float16.
        dtype: Of the features in the file, 'float32' or 'float16'.
        list_file: A text file with one path per line, relative to the folder or absolute: those alone.
        overwrite: Start over, and replace what `out` was.
        **settings: `mean`, `std` and `crop` as for :func:`mmcae.apis.extract_features`; the rest are arguments of
            :func:`mmcae.apis.load_encoder`.

    Returns:
        The path of the file; without `out` its columns as arrays: `ids` (N,), `paths` (N,), and the features (N, C), of patches (N, n, C).

    Raises:
        ConfigError: Settings that cannot be; `out` exists; or `OUT.pieces` are of other images, another encoder or other settings.
        DataError: The folder has no images, or none that can be read.
        DependencyError: The format needs a library that is missing.
    """
    if out is None:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch, 'features.npz')
            embed(source, folder, path, features, img_size, batch_size, workers, device, amp, dtype, list_file, **settings)
            (columns,) = read_features(path, batch_size=2**62)
            return columns
    out, features = Path(out), [features] if isinstance(features, str) else list(dict.fromkeys(features))
    check_arguments(out, features, batch_size, workers, dtype, overwrite)
    encoder, view = load_encoder_and_view(source, img_size, **settings)
    images = open_folder(folder, list_file)  # takes long where there are millions
    rank, processes = join_processes()
    device = device or (f'cuda:{os.environ.get("LOCAL_RANK", 0)}' if torch.cuda.is_available() else get_device())
    with evaluating(encoder, device) as encoder:
        if 'cls' in features and not encoder.has_cls:
            raise ConfigError("This encoder has no cls token: choose the features 'mean' or 'patch'")
        work = Work(encoder, view, images, features, batch_size, amp, dtype)
        pieces = Path(f'{out}.pieces')
        with locked(pieces) if rank == 0 else contextlib.nullcontext():
            if rank == 0:
                work.begin(pieces, overwrite)
            wait_for_others(processes)
            work.compute(pieces, workers, rank, processes)
            wait_for_others(processes)
            if rank == 0:
                work.finish(pieces, out, str(folder))
    if rank == 0:
        shutil.rmtree(pieces)
    wait_for_others(processes)
    return out


def check_arguments(out: Path, features: list[str], batch_size: int, workers: int | None, dtype: str, overwrite: bool):
    """Refuse arguments of :func:`embed` before anything slow begins."""
    check_format(out)
    if not features or not set(features) <= set(FEATURES):
        raise ConfigError(f'features={features}: one or several of {", ".join(FEATURES)}')
    if batch_size < 1 or (workers or 0) < 0:
        raise ConfigError(f'batch_size={batch_size} must be at least 1, workers={workers} not negative')
    if dtype not in DTYPES:
        raise ConfigError(f'dtype={dtype!r} is none of {", ".join(DTYPES)}')
    if out.exists() and not overwrite:
        raise ConfigError(f'{out} exists: give another name, or overwrite it by --overwrite (overwrite=True)')


def open_folder(folder: str | Path, list_file: str | Path | None):
    """The data set of a folder's images, or of those that a list names."""
    packed = size_of(remote.join(folder, MANIFEST)) is not None
    kind = dict(type='mmcae.PackedImages') if packed else dict(type='mmcae.ImageFolder')
    listed = {} if list_file is None else dict(ann_file=str(list_file if remote.is_remote(list_file) else Path(list_file).absolute()))
    return DATASETS.build(dict(kind, data_root=str(folder), **listed, pipeline=[], test_mode=True))


def join_processes() -> tuple[int, int]:
    """Rank and number of the processes that torchrun started."""
    processes = int(os.environ.get('WORLD_SIZE', 1))
    if processes > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')  # they only wait for each other
    return int(os.environ.get('RANK', 0)), processes


def wait_for_others(processes: int):
    """Go on when all processes are here."""
    if processes > 1:
        torch.distributed.barrier()


@dataclass
class Images(Dataset):
    """What the loader's workers do: row -> (row, uint8 or float32 (h, w, C), None), or (row, None, (path, reason)) of a bad file."""

    source: Dataset
    view: View

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, row: int):
        info = self.source.get_data_info(row)
        try:
            data = self.source.prepare_data(row).get('img_bytes')
            return row, torch.from_numpy(np.ascontiguousarray(self.view.cut(read_image(info['img_path'], self.view.channels, data)))), None
        except StorageError:  # the next run asks again
            raise
        except DataError as error:
            return row, None, (printable(info['img_path']), printable(str(error)))

    def __getitems__(self, rows: list[int]):
        with requested_batch(self.source, rows):
            return [self[row] for row in rows]


def collate(items: list) -> tuple[list[int], Tensor | None, list]:
    """Rows and images (B, h, w, C) of what could be read, and the bad files."""
    good = [(row, image) for row, image, _ in items if image is not None]
    bad = [(row, *problem) for row, _, problem in items if problem]
    return [row for row, _ in good], torch.stack([image for _, image in good]) if good else None, bad


class Work:
    """Rows of features, computed piece by piece.

    Args:
        encoder: In eval mode, on its device.
        view: What it is shown.
        images: The data set.
        features: Names in :data:`FEATURES`.
        batch_size, amp, dtype: See :func:`embed`.
    """

    def __init__(self, encoder: nn.Module, view: View, images: Dataset, features: list[str], batch_size: int, amp: bool, dtype: str):
        self.encoder, self.view, self.images, self.features = encoder, view, images, features
        self.batch_size, self.amp, self.dtype = batch_size, amp, dtype
        self.device = next(encoder.parameters()).device
        self.mean, self.std = (torch.tensor(values, device=self.device).view(-1, 1, 1) for values in (view.mean, view.std))
        tokens = prod(encoder.grid_of(view.size)) if 'patch' in features else 0
        row_bytes = (tokens + len(features)) * encoder.embed_dims * np.dtype(dtype).itemsize
        self.rows = max(1, min(PIECE_ROWS, PIECE_BYTES // row_bytes))

    @property
    def pieces(self) -> range:
        """The first row of every piece."""
        return range(0, len(self.images), self.rows)

    def plan(self) -> dict:
        """What must not change between two runs."""
        names = hashlib.sha256()
        for name in self.images.sample_names():
            names.update(name + b'\n')
        view = dict(vars(self.view), size=list(self.view.size), mean=list(self.view.mean), std=list(self.view.std))
        return dict(
            images=names.hexdigest(),
            encoder=weights_checksum(self.encoder.state_dict()),
            features=self.features,
            view=view,
            dtype=self.dtype,
            amp=self.amp,
            rows=self.rows,
        )

    def begin(self, folder: Path, overwrite: bool):
        """Take over the pieces of an earlier run, or start over."""
        plan, path = self.plan(), folder / PLAN
        if path.exists() and not overwrite:
            before = json.loads(path.read_text())
            changed = [name for name in plan if before.get(name) != plan[name]]
            if changed:
                raise ConfigError(f'{folder} was begun with other {", ".join(changed)}: --overwrite (overwrite=True) starts over')
            return
        for old in folder.iterdir():
            if old.name != LOCK:
                old.unlink()
        write_file(path, json.dumps(plan))

    def compute(self, folder: Path, workers: int | None, rank: int = 0, processes: int = 1):
        """Compute the pieces that are not there, of several processes each its share."""
        todo = [start for start in self.pieces if not (folder / f'{start}.npz').exists()][rank::processes]
        ends = {start: min(start + self.rows, len(self.images)) for start in todo}
        batches = [
            range(first, min(first + self.batch_size, ends[start]))
            for start in todo
            for first in range(start, ends[start], self.batch_size)
        ]
        cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
        workers = workers if workers is not None else cores if self.device.type == 'cuda' else cores - 1
        loader = DataLoader(
            Images(self.images, self.view),
            batch_sampler=batches,
            num_workers=min(workers, len(batches)),
            collate_fn=collate,
            pin_memory=self.device.type == 'cuda',
        )
        display, began, done, total = Display(), time.time(), 0, sum(ends[start] - start for start in todo)
        try:
            # One array for all pieces: small ones, kept between the large ones of the forward passes, would fragment the memory.
            columns, stream = {}, iter(loader)
            for start in todo:
                rows, bad = [], []
                for _ in range(start, ends[start], self.batch_size):
                    good, images, problems = next(stream)
                    for name, values in (self.forward(images) if good else {}).items():
                        if name not in columns:
                            columns[name] = np.empty((self.rows, *values.shape[1:]), self.dtype)
                        columns[name][len(rows) : len(rows) + len(good)] = values
                    rows += good
                    bad += problems
                    done += len(good) + len(problems)
                    if rank == 0:
                        display.status(partial(status, done, total, time.time() - began))
                self.save(folder / f'{start}.npz', rows, columns, bad)
        finally:
            display.close()

    @torch.inference_mode()
    def forward(self, images: Tensor) -> dict[str, np.ndarray]:
        """Images (B, h, w, C) -> the features of each."""
        x = (images.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float() - self.mean) / self.std
        low = torch.bfloat16 if self.device.type == 'cpu' or torch.cuda.is_bf16_supported() else torch.float16
        encoder = self.encoder
        with torch.autocast(self.device.type, low, enabled=self.amp):
            x, grid = encoder.tokens(x)
            found = {}
            for name in self.features:
                encoder.out_type = FEATURES[name]
                output = encoder.output(x, grid, last=True)
                found[name] = output[:, encoder.num_prefix_tokens :] if name == 'patch' else output
        return {name: output.float().cpu().numpy() for name, output in found.items()}

    def save(self, path: Path, rows: list[int], columns: dict[str, np.ndarray], bad: list):
        """One piece: rows, the features at the beginning of the columns, and bad files."""
        features = {name: column[: len(rows)] for name, column in columns.items()}
        with atomic_file(path) as file:
            np.savez(file, ids=np.array(rows, np.int64), bad=np.array(json.dumps(bad)), **features)

    def finish(self, folder: Path, out: Path, source: str):
        """Put the pieces together."""
        files = [folder / f'{start}.npz' for start in self.pieces]
        bad = [problem for file in files for problem in json.loads(str(np.load(file)['bad']))]
        listed = Path(f'{out}.bad_files.tsv')
        listed.unlink(missing_ok=True)
        if bad:
            write_file(listed, ''.join(f'{path}\t{reason}\n' for _, path, reason in bad))
        if len(bad) == len(self.images):
            raise DataError(f'None of the {len(bad):,} images in {source} can be read; the first: {bad[0][2]} (all: {listed})')
        about = dict(
            folder=source,
            images=len(self.images) - len(bad),
            bad_files=len(bad),
            features=self.features,
            grid=list(self.encoder.grid_of(self.view.size)),
            encoder=self.encoder.spec.to_dict(),
        )
        write_features(out, lambda names: self.columns(files, names), about)
        problems = f'; {len(bad):,} files could not be read: {listed}' if bad else ''
        print(f'{out}: {", ".join(self.features)} of {about["images"]:,} images{problems}', flush=True)

    def columns(self, files: Iterable[Path], names: Sequence[str] | None) -> Iterator[dict[str, np.ndarray]]:
        """What is kept in the pieces, and the paths."""
        for file in files:
            with np.load(file) as piece:
                ids = piece['ids']
                if not len(ids):
                    continue
                found = dict(ids=ids)
                if names is None or 'paths' in names:
                    found['paths'] = np.array([self.name_of(row) for row in ids.tolist()])
                yield found | {name: piece[name] for name in self.features if names is None or name in names}

    def name_of(self, row: int) -> str:
        """The path of an image below the folder; of a packed one the path that it had below the folder that was packed."""
        if hasattr(self.images, 'reader'):
            return self.images.reader.path(row)
        return os.path.relpath(self.images.get_data_info(row)['img_path'], self.images.data_prefix['img_path'] or '.')


def status(done: int, total: int, seconds: float) -> str:
    """How far it is, in one line."""
    rate = done / max(seconds, 1e-9)
    left = duration((total - done) / rate) if rate else '?'
    return f'{done:,}/{total:,} images | {rate:,.1f} images/s | {left} left'
