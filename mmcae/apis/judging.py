"""Judge frozen encoders by all that the labels of a data set allow: `mmcae judge`."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from mmengine.device import get_device
from mmengine.logging import print_log
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..checkpoints import weights_checksum
from ..datasets.sources.labelled_images import SPLITS, LabelledImages
from ..datasets.sources.labelled_readers import read_labelled
from ..evaluation.block_features import patch_features, pooled_features
from ..evaluation.feature_cache import kept_features, kept_result
from ..evaluation.probes import POOLED, PooledSplit, Score, Settings, probes_for
from ..evaluation.segmentation import DenseBatch, DenseSplit, PatchBank, draw_patches
from ..models import Encoder
from ..registry import MODELS
from ..utils.errors import ConfigError
from .features import evaluating, load_encoder_and_view
from .images import load_image, resize
from .view import View

RANDOM = 'random'  # in the place of a checkpoint: the first encoder's architecture before any training


def judge(
    encoders: Mapping[str, str | Path | Encoder],
    data: str | Path | LabelledImages,
    probes: Sequence[str] | None = None,
    settings: Settings | None = None,
    label_maps: str | Path | None = None,
    split_by: str | None = None,
    grid: tuple[int, int] | None = None,
    num_heads: int | None = None,
    batch_size: int = 64,
    workers: int = 0,
    device: str | torch.device | None = None,
) -> 'Judgement':
    """Run all probes that the labels of a data set allow on frozen encoders.

    Features and scores are kept in `$MMCAE_CACHE` by the encoder's spec and weights, the view, and the data's fingerprint: the second call
    computes what is new.

    Args:
        encoders: Checkpoints or encoders by the names they have in the table; 'random' is the architecture of the first one with random
            weights.
        data: See :func:`mmcae.datasets.sources.labelled_readers.read_labelled`, which takes `label_maps` and `split_by` too.
        probes: Of :data:`mmcae.evaluation.probes.PROBES`; all that are allowed by default.
        settings: Of the probes.
        grid: Patches (rows, columns) that each encoder sees an image as. Defaults to that of the encoder.
        num_heads: Of the encoders whose files do not tell.
        batch_size, workers: Images at a time, and processes that read them.
        device: Where to compute. Defaults to a GPU if there is one.

    Raises:
        CheckpointError: See :func:`mmcae.apis.load_encoder`.
        ConfigError: No encoder, a probe that the labels do not allow, or encoders of different grids.
        DataError: See :func:`read_labelled`, and an image that cannot be read.
    """
    settings = settings or Settings()
    if batch_size < 1 or workers < 0:
        raise ConfigError(f'batch_size={batch_size} must be at least 1, workers={workers} not negative')
    wanted = probes_for((), probes)  # before anything is read
    images = data if isinstance(data, LabelledImages) else read_labelled(data, label_maps, split_by, settings.seed)
    wanted = probes_for(images.kinds, probes)
    missing = [name for name in probes or () if not any(name in by_name for by_name in wanted.values())]
    if missing:
        raise ConfigError(f'{images.name} has no labels for the probe {missing[0]!r}: it has {", ".join(images.kinds)}')
    loaded = load_all(encoders, grid, num_heads, settings.seed)
    scores = {}
    for name, (encoder, view) in loaded.items():
        print_log(f'Judging {name}', 'current')
        with evaluating(encoder, device or get_device()) as encoder:
            scores[name] = judge_one(Frozen(encoder, view, images, batch_size, workers), wanted, settings)
    counts = {split: len(images.index(split)) for split in SPLITS}
    return Judgement(images.name, counts, scores, settings)


def load_all(
    encoders: Mapping[str, str | Path | Encoder], grid: tuple[int, int] | None, num_heads: int | None, seed: int
) -> dict[str, tuple[Encoder, View]]:
    """The encoders and what they are shown, all with the same grid of patches."""
    known = [source for source in encoders.values() if str(source) != RANDOM]
    if not known:
        raise ConfigError('Name a checkpoint: "random" is the architecture of the first one with random weights')
    loaded = {}
    for name, source in encoders.items():
        is_random = not isinstance(source, nn.Module) and str(source) == RANDOM
        settings = {} if isinstance(source, nn.Module) or num_heads is None else dict(num_heads=num_heads)
        encoder, view = load_encoder_and_view(known[0] if is_random else source, **settings)
        if grid is not None:
            size = tuple(n * p for n, p in zip(grid, encoder.patch_size, strict=True))
            encoder, view = load_encoder_and_view(encoder, size, view.mean, view.std)
        if is_random:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                encoder = MODELS.build(encoder.spec.config())
        loaded[name] = encoder, view
    grids = {name: encoder.grid_of(view.size) for name, (encoder, view) in loaded.items()}
    (first, theirs), *others = grids.items()
    for name, other in others:
        if other != theirs:
            raise ConfigError(
                f'{first} sees images as {theirs[0]}x{theirs[1]} patches and {name} as {other[0]}x{other[1]}, so that their scores do not '
                f'compare: show both the same, by --grid {theirs[0]} {theirs[1]}'
            )
    return loaded


# ---------------------------------------------------------------- one encoder


class Shown(Dataset):
    """Images as an encoder sees them: a centre cut by the view, or with `whole` the whole image, squeezed into the view's size."""

    def __init__(self, paths: Sequence[str], view: View, whole: bool):
        self.paths, self.view, self.whole = paths, view, whole

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, number: int) -> Tensor:
        image = load_image(self.paths[number], self.view.channels)
        resample = Image.Resampling[self.view.interpolation.upper()]
        return self.view.normalize([resize(image, self.view.size, resample) if self.whole else self.view.cut(image)])[0]


class Frozen:
    """The features of a data set by one encoder, computed when a probe asks for them, and kept.

    Args:
        encoder: In eval mode, on the device to compute on.
        view: What it is shown.
        images: The data set.
        batch_size, workers: Of the loader.
    """

    def __init__(self, encoder: Encoder, view: View, images: LabelledImages, batch_size: int, workers: int):
        self.encoder, self.view, self.images = encoder, view, images
        self.batch_size, self.workers = batch_size, workers
        self.device = next(encoder.parameters()).device
        self.grid = encoder.grid_of(view.size)
        self.about = dict(
            encoder=encoder.spec.to_dict(), weights=weights_checksum(encoder.state_dict()), data=images.fingerprint(), view=asdict(view)
        )

    def batches(self, whole: bool, rows: Sequence[int] | None = None) -> Iterator[Tensor]:
        """These images, or all, in order."""
        paths = self.images.paths
        shown = Shown(paths if rows is None else [paths[row] for row in rows], self.view, whole)
        for batch in DataLoader(shown, self.batch_size, num_workers=self.workers, generator=torch.Generator()):
            yield batch.to(self.device)

    @cache  # noqa: B019 - lives as long as the encoder is judged
    def pooled(self, blocks: int) -> Tensor:
        """(N, blocks, 2, C), see :func:`mmcae.evaluation.block_features.pooled_features`."""
        blocks = min(blocks, len(self.encoder.blocks))
        shape = (len(self.images.paths), blocks, 2, self.encoder.embed_dims)
        parts = (pooled_features(self.encoder, batch, blocks).float().cpu().numpy() for batch in self.batches(whole=False))
        features = kept_features(dict(self.about, features='pooled', blocks=blocks), shape, 'float32', lambda: parts)
        return torch.from_numpy(np.array(features)).to(self.device)

    @cache  # noqa: B019
    def patches(self, blocks: int) -> np.ndarray | None:
        """(N, rows * columns, blocks, C), float16, mapped into memory; None where the cache has no room for them."""
        blocks = min(blocks, len(self.encoder.blocks))
        shape = (len(self.images.paths), self.grid[0] * self.grid[1], blocks, self.encoder.embed_dims)
        parts = (self.patches_of(batch, blocks).cpu().numpy() for batch in self.batches(whole=True))
        return kept_features(dict(self.about, features='patches', blocks=blocks), shape, 'float16', lambda: parts, in_memory=False)

    def patches_of(self, images: Tensor, blocks: int) -> Tensor:
        """(B, rows * columns, blocks, C), float16."""
        return patch_features(self.encoder, images, blocks).half()

    def pooled_splits(self, labels: np.ndarray, blocks: int) -> dict[str, PooledSplit]:
        """What the probes of whole images read."""
        features, labels = self.pooled(blocks), torch.from_numpy(labels).to(self.device)
        index = {split: self.images.index(split) for split in SPLITS}
        return {split: PooledSplit(features[rows], labels[rows], self.images.group_of(rows)) for split, rows in index.items()}

    @cache  # noqa: B019
    def bank(self, settings: Settings) -> PatchBank:
        """Labelled patches of the training split, at most so many of them, drawn at random."""
        train, classes = self.dense_split('train', settings), len(self.images.label_maps.names)
        return draw_patches(train, self.encoder.patch_size, classes, settings.patches, settings.seed)

    def dense_split(self, split: str, settings: Settings) -> DenseSplit:
        """The images of a split and their label maps, with what the cache keeps, or computed in every pass."""
        rows, blocks = self.images.index(split), max(settings.blocks)
        parts = np.split(rows, range(self.batch_size, len(rows), self.batch_size))

        def batches() -> Iterator[DenseBatch]:
            kept = self.patches(blocks)
            if kept is None:
                features = (self.patches_of(batch, blocks) for batch in self.batches(whole=True, rows=rows))
            else:
                features = (torch.from_numpy(kept[part]) for part in parts)
            for part, found in zip(parts, features, strict=True):
                yield DenseBatch(found, self.grid, [self.label_map(row) for row in part])

        return batches

    def label_map(self, row: int) -> Tensor:
        """The label map of an image."""
        return torch.from_numpy(self.images.label_maps.read(int(row)).astype(np.int64))


def judge_one(frozen: Frozen, wanted: Mapping[str, Mapping], settings: Settings) -> list[Score]:
    """The scores of one encoder by all probes."""
    images = frozen.images
    labels = images.labels_fingerprint()
    has_cls = frozen.encoder.has_cls
    scores = []
    for kind, probes in wanted.items():
        for name, probe in probes.items():

            def compute(kind=kind, probe=probe) -> list[dict]:
                if kind in POOLED:
                    names, values = getattr(images, kind)
                    found = probe(frozen.pooled_splits(values, max(settings.blocks)), names, has_cls, settings)
                else:
                    groups = images.group_of(images.index('test'))
                    val, test = (frozen.dense_split(split, settings) for split in ('val', 'test'))
                    found = probe(frozen.bank(settings), val, test, groups, settings, frozen.device)
                return [score.to_dict() for score in found]

            content = dict(frozen.about, labels=labels, settings=asdict(settings), probe=name)
            scores += [Score(**score) for score in kept_result(content, compute)]
    return scores


# ---------------------------------------------------------------- what comes out


@dataclass(frozen=True)
class Judgement:
    """Scores of encoders on one data set.

    Attributes:
        data: The name of the data set.
        counts: Images of each split.
        scores: Of each encoder, all of the same probes.
        settings: Of the probes.
    """

    data: str
    counts: Mapping[str, int]
    scores: Mapping[str, Sequence[Score]]
    settings: Settings

    def table(self) -> list[list[str]]:
        """Rows of text, the header first: a row for each encoder, a column for each score, with its interval."""
        columns = list(dict.fromkeys((score.probe, score.metric) for scores in self.scores.values() for score in scores))
        rows = [['encoder', *(f'{probe.replace("_", " ")}, {metric}' for probe, metric in columns)]]
        for name, scores in self.scores.items():
            found = {(score.probe, score.metric): score for score in scores}
            rows.append([name, *(shown(found[column]) if column in found else '' for column in columns)])
        return rows

    def markdown(self) -> str:
        """The table, and what the figures are."""
        head, *rows = self.table()
        lines = ['| ' + ' | '.join(row) + ' |' for row in (head, ['---', *['---:'] * (len(head) - 1)], *rows)]
        counts = ', '.join(f'{count:,} {split}' for split, count in self.counts.items())
        note = (
            f'{self.data}: {counts}. Scores of the test split, chosen on val; shares in per cent. In brackets the '
            f'{self.settings.level:.0%} interval: by bootstrap over groups (over images where there are no groups), or over draws of the '
            'labels (few shot).'
        )
        return '\n'.join(lines) + f'\n\n{note}\n'

    def json(self) -> str:
        """Everything, for programs and for `mmcae report`."""
        scores = {name: [score.to_dict() for score in scores] for name, scores in self.scores.items()}
        content = dict(kind='mmcae.judge', data=self.data, counts=self.counts, settings=asdict(self.settings), scores=scores)
        return json.dumps(content | dict(table=self.table()), indent=1, ensure_ascii=False) + '\n'

    def csv(self) -> str:
        """A line for each score."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow(['data', 'encoder', *Score.__annotations__])
        writer.writerows([self.data, name, *score.to_dict().values()] for name, scores in self.scores.items() for score in scores)
        return file.getvalue()


def shown(score: Score) -> str:
    """A score with its interval, such as '71.2 [69.0, 73.1]'; shares in per cent, errors as they are."""
    if score.metric == 'MAE':
        return f'{score.value:.4g} [{score.low:.4g}, {score.high:.4g}]'
    return f'{100 * score.value:.1f} [{100 * score.low:.1f}, {100 * score.high:.1f}]'
