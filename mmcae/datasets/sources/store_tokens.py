"""Draw random views of all images of a data set and store the tokens of each, resumably; see :mod:`mmcae.datasets.sources.token_store`."""

import hashlib
import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from mmengine.dataset import BaseDataset, Compose
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...utils.errors import ConfigError, DataError, StorageError
from ...utils.files import UNFINISHED, remove_unfinished, write_file
from ...utils.locks import LOCK, locked
from ...utils.processes import interruptible
from ...utils.progress import Display, duration
from ..requested_batch import requested_batch
from .bad_files import printable
from .token_store import FLIPS, MANIFEST, Manifest, content_key, open_arrays, read_manifest

UNREADABLE = 'unreadable.tsv'
REPEATABLE = ('LoadImage', 'RandomFlip', 'TwoViewCrop')  # the transforms whose random numbers a store keeps
MAKERS = ('images', 'views', 'grid', 'vocab_size')  # what, besides the settings, must not change between runs
SAVE_EVERY = 60  # seconds


class RandomViews(Dataset):
    """Views of the images of a data set as the transforms of its pipeline draw them, the same in every run.

    Args:
        dataset: Its pipeline begins with LoadImage, RandomFlip and TwoViewCrop; RandomFlip may be missing. It is taken over.
        views: Of each image.
        seed: Others give other views.

    Raises:
        ConfigError: The pipeline has other transforms before the mask, which a store cannot repeat.
    """

    def __init__(self, dataset: BaseDataset, views: int, seed: int):
        self.dataset, self.views, self.seed = dataset, views, seed
        steps = dataset.pipeline.transforms
        names = [type(step).__name__ for step in steps]
        last = names.index('TwoViewCrop') if 'TwoViewCrop' in names else 0
        strange = [name for name in names[: last + 1] if name not in REPEATABLE]
        if not last or strange or getattr(steps[0], 'crop', None):
            culprit = strange[0] if strange else 'LoadImage with reduced_decoding' if last else 'no TwoViewCrop'
            raise ConfigError(f'Stored views repeat {", ".join(REPEATABLE)} and nothing else, but the pipeline has {culprit}')
        if steps[last].backend == 'device':
            raise ConfigError("Stored views are made by loader workers: set resize_backend (TwoViewCrop's backend) to 'torch' or 'pillow'")
        self.draw = steps[1 : last + 1]
        dataset.pipeline = Compose(steps[:1])
        dataset.test_mode = True  # in which an unreadable file is an error, not another image

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> dict:
        """`row`, `path`, and `key`, `box`, `flip` and `image` (K, h, w, C) of all views; or why there are none, as `error`."""
        found = dict(row=row, path=self.dataset.get_data_info(row)['img_path'])
        try:
            loaded = self.dataset.prepare_data(row)
        except StorageError:  # the next run asks again
            raise
        except DataError as error:
            return dict(found, error=str(error))
        drawn = []
        for number in range(self.views):
            random.seed(f'{self.seed} {row} {number}')
            np.random.seed(random.getrandbits(32))
            results = dict(loaded)
            for step in self.draw:
                results = step(results)
            drawn.append((results['crop_box'], FLIPS.index(results.get('flip_direction')), results['img'][1]))
        boxes, flips, images = zip(*drawn, strict=True)
        key = content_key(loaded['img_bytes'])
        return dict(found, key=key, box=np.array(boxes), flip=np.array(flips), image=np.stack(images))

    def __getitems__(self, rows: list[int]) -> list[dict]:
        with requested_batch(self.dataset, rows):
            return [self[row] for row in rows]

    def names(self) -> str:
        """Hash of the files' names and order, whatever folder all of them are in."""
        paths = [self.dataset.get_data_info(row)['img_path'] for row in range(len(self))]
        common = os.path.dirname(os.path.commonprefix([min(paths, default=''), max(paths, default='')]))
        names = '\0'.join(path[len(common) :] for path in paths)
        return hashlib.sha256(names.encode(errors='surrogateescape')).hexdigest()


def fill(folder: Path, manifest: Manifest, views: RandomViews, tokenize: Callable[[Tensor], Tensor], batch_size: int, workers: int):
    """Write a store, or go on where an interrupted run of the same kind stopped.

    Args:
        folder: Where to: new, empty, or of an earlier run.
        manifest: What it will be; its settings as json gives them back, lists for tuples.
        views: Draws the views.
        tokenize: uint8 views (B, C, h, w) -> tokens (B, rows, columns).
        batch_size: Images, each with all its views, at a time.
        workers: Processes that read images.

    Returns:
        The manifest of the complete store.

    Raises:
        DataError: The folder holds something else, or another process works in it.
        StorageError: The storage fails; the same call goes on from there.
    """
    with locked(folder), interruptible():
        remove_unfinished(folder)
        manifest = resume(folder, manifest)
        arrays = open_arrays(folder, manifest, 'r+')
        display, began, before, saved = Display(), time.time(), manifest.done, time.time()
        if before:
            display.event(f'{before:,} of {manifest.images:,} images were done with before: going on from there.')

        def progress():
            speed = (manifest.done - before) / max(time.time() - began, 1e-9)
            left = duration((manifest.images - manifest.done) / speed)
            return f'{manifest.done:,} of {manifest.images:,} images, {speed:,.0f} images/s, {left} left'

        with open(folder / UNREADABLE, 'ab') as unreadable:
            unreadable.truncate(manifest.unreadable_bytes)

            def save():
                """Everything so far to the disk; the manifest last, so that it never promises rows that are not there."""
                for array in arrays.values():
                    array.flush()
                unreadable.flush()
                os.fsync(unreadable.fileno())
                manifest.unreadable_bytes = os.fstat(unreadable.fileno()).st_size
                save_manifest(folder, manifest)

            try:
                for batch in DataLoader(views, batch_size, sampler=range(before, len(views)), num_workers=workers, collate_fn=list):
                    write_rows(arrays, [sample for sample in batch if 'error' not in sample], tokenize)
                    for sample in batch:
                        arrays['key'][sample['row']] = sample.get('key', 0)
                        if 'error' in sample:
                            manifest.unreadable += 1
                            unreadable.write(f'{printable(sample["path"])}\t{printable(sample["error"])}\n'.encode())
                    manifest.done += len(batch)
                    if time.time() - saved > SAVE_EVERY:
                        save()
                        saved = time.time()
                    display.status(progress)
                save()
            except StorageError:
                save()
                raise
            finally:
                display.close()
    return manifest


def write_rows(arrays: dict[str, np.ndarray], samples: list[dict], tokenize: Callable[[Tensor], Tensor]):
    """Fill the rows of images that could be read."""
    if not samples:
        return
    images = torch.from_numpy(np.concatenate([sample['image'] for sample in samples])).permute(0, 3, 1, 2)
    tokens = tokenize(images).cpu().numpy().reshape(len(samples), *arrays['token'].shape[1:])
    for sample, values in zip(samples, tokens, strict=True):
        row = sample['row']
        arrays['box'][row], arrays['flip'][row], arrays['token'][row] = sample['box'], sample['flip'], values


def resume(folder: Path, manifest: Manifest) -> Manifest:
    """The manifest of an earlier run of the same kind, or the given one, with arrays to fill.

    Raises:
        DataError: The folder holds something else.
    """
    if (folder / MANIFEST).exists():
        earlier = read_manifest(folder)
        changed = [name for name in MAKERS if getattr(earlier, name) != getattr(manifest, name)]
        names = {**earlier.settings, **manifest.settings}
        changed += [name for name in names if earlier.settings.get(name) != manifest.settings.get(name)]
        if changed:
            raise DataError(f'{folder} was made otherwise: {", ".join(changed)} changed since. Delete it or choose another folder')
        manifest = earlier
    else:
        foreign = sorted(file.name for file in folder.iterdir() if file.name != LOCK and not UNFINISHED.fullmatch(file.name))
        if foreign:
            raise DataError(f'{folder} is not empty and was not made by this tool ({foreign[0]} is in it). Choose another folder')
        save_manifest(folder, manifest)  # before the arrays, so that what an interruption leaves behind is known to be ours
    if not manifest.done:
        for name, (shape, dtype) in manifest.shapes().items():
            np.lib.format.open_memmap(folder / f'{name}.npy', 'w+', dtype, shape).flush()
    return manifest


def save_manifest(folder: Path, manifest: Manifest):
    """Whole or not at all."""
    write_file(folder / MANIFEST, json.dumps(asdict(manifest), indent=1) + '\n')
