"""Images with whatever labels there are, and their splits: what encoders are judged on."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from mmengine.logging import print_log

from ...utils.errors import DataError
from .fingerprint import below_common_folder
from .group_split import take_groups

SPLITS = ('train', 'val', 'test')
VAL_SHARE = TEST_SHARE = 0.2


@dataclass(frozen=True)
class LabelMaps:
    """A label map for each image.

    Args:
        names: Of the classes.
        read: Gives the map of the image of an index: integers (H, W), classes or 255.
        paths: Of the files, one for each image.
    """

    names: Sequence[str]
    read: Callable[[int], np.ndarray]
    paths: Sequence[str]


@dataclass(frozen=True)
class LabelledImages:
    """Images, their labels of every kind that there is, the split and the group that each belongs to.

    Args:
        name: Of the data set.
        paths: N image files.
        splits: 'train', 'val' or 'test' for each image.
        groups: Patient, slide, scene or the like of each image, if samples belong together.
        classes: One class for each image: names, and int64 (N,).
        tags: Any number of labels for each image: names, and bool (N, L).
        numbers: Numbers to predict: names, and float64 (N, T).
        label_maps: A class for each pixel.

    Raises:
        DataError: No image, no labels, an empty split, a group in two splits, or labels that nothing can be learnt of or judged by.
    """

    name: str
    paths: Sequence[str]
    splits: np.ndarray
    groups: np.ndarray | None = None
    classes: tuple[Sequence[str], np.ndarray] | None = None
    tags: tuple[Sequence[str], np.ndarray] | None = None
    numbers: tuple[Sequence[str], np.ndarray] | None = None
    label_maps: LabelMaps | None = None

    def __post_init__(self):
        if not len(self.paths):
            raise DataError(f'{self.name} has no image')
        if not self.kinds:
            raise DataError(f'{self.name} has no labels to judge by')
        check_splits(self.name, self.splits, self.groups)
        if self.classes is not None:
            check_classes(self.name, *self.classes, self.splits)
        if self.tags is not None:
            check_tags(self.name, *self.tags, self.splits)
        if self.numbers is not None:
            check_targets(self.name, *self.numbers, self.splits)
        if self.label_maps is not None and len(self.label_maps.names) < 2:
            found = ', '.join(self.label_maps.names) or 'none'
            raise DataError(f'{self.name}: its label maps have one class at most ({found}): there is nothing to tell apart')

    @property
    def kinds(self) -> list[str]:
        """Which kinds of labels there are."""
        return [name for name in ('classes', 'tags', 'numbers', 'label_maps') if getattr(self, name) is not None]

    def describe(self, kind: str) -> str:
        """A kind of labels with the first of its names, for the log."""
        labels = getattr(self, kind)
        names = labels.names if kind == 'label_maps' else labels[0]
        return f'{kind} ({", ".join(names[:8])}{f", ... {len(names)} in all" if len(names) > 8 else ""})'

    def index(self, split: str) -> np.ndarray:
        """The images of a split, int64."""
        return np.flatnonzero(self.splits == split)

    def group_of(self, index: np.ndarray) -> np.ndarray:
        """Groups of images; each is its own where there are none."""
        return index if self.groups is None else self.groups[index]

    def fingerprint(self) -> str:
        """A checksum over names, sizes and dates of the image files, by which features in the cache are known."""
        return files_fingerprint(self.paths)

    def labels_fingerprint(self) -> str:
        """A checksum over labels, splits and groups, by which results in the cache are known."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(repr([self.splits.tolist(), None if self.groups is None else self.groups.tolist()]).encode())
        for labels in (self.classes, self.tags, self.numbers):
            digest.update(repr(None if labels is None else (list(labels[0]), labels[1].shape)).encode())
            digest.update(b'' if labels is None else np.ascontiguousarray(labels[1]).tobytes())
        if self.label_maps is not None:
            digest.update(repr(list(self.label_maps.names)).encode() + files_fingerprint(self.label_maps.paths).encode())
        return digest.hexdigest()


def files_fingerprint(paths: Sequence[str]) -> str:
    """A checksum over files by their names below their common folder, their sizes and dates.

    Raises:
        DataError: A file is not there.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, path in zip(below_common_folder([os.fsencode(path) for path in paths]), paths, strict=True):
        try:
            status = os.stat(path)
        except FileNotFoundError as error:
            raise DataError(f'{path} does not exist, though the data set names it') from error
        digest.update(name + f'\0{status.st_size} {status.st_mtime_ns}\0'.encode())
    return digest.hexdigest()


# ---------------------------------------------------------------- splits


def dealt(
    name: str, count: int, splits: np.ndarray | None, groups: np.ndarray | None, classes: np.ndarray | None, seed: int = 0
) -> tuple[np.ndarray, str]:
    """The split of each image, where none or not all of the three are given.

    A set with 'train' and 'val' alone is reported on its 'val', as ImageNet and ADE20K are: it counts as 'test', and a fifth of 'train' is
    split off to choose on. So it is with 'train' and 'test'. A set without splits is divided 60 : 20 : 20. Whole groups are dealt where
    there are groups, else images at random, of each class in proportion.

    Args:
        name: Of the data set, for messages.
        count: Number of images.
        splits: 'train', 'val', 'test' for each; or None.
        groups: Of each image, or None.
        classes: int64, of each image, or None.
        seed: Of the dealing.

    Returns:
        The splits, and what was done, for the log.

    Raises:
        DataError: No 'train', or nothing to judge on; a class with one image; one group alone.
    """
    splits = np.full(count, 'train', dtype='<U5') if splits is None else np.array(splits, dtype='<U5')
    present = {split for split in SPLITS if (splits == split).any()}
    if 'train' not in present:
        raise DataError(f'{name} has no split "train": there is nothing to learn from (it has {", ".join(sorted(present))})')
    done = []
    if present == {'train', 'val'}:
        splits[splits == 'val'] = 'test'
        done.append('val is what is reported')
    if present == {'train'}:
        splits[take(name, splits, groups, classes, TEST_SHARE, seed)] = 'test'
        done.append('a fifth was split off to report on')
    if 'val' not in present or present == {'train', 'val'}:
        share = VAL_SHARE / (1 - TEST_SHARE) if present == {'train'} else VAL_SHARE
        splits[take(name, splits, groups, classes, share, seed + 1)] = 'val'
        done.append('a fifth was split off to choose on')
    return splits, '; '.join(done)


def take(name: str, splits: np.ndarray, groups: np.ndarray | None, classes: np.ndarray | None, share: float, seed: int) -> np.ndarray:
    """Indices of the images of 'train' that go to another split."""
    index = np.flatnonzero(splits == 'train')
    if groups is not None:
        names, sizes = np.unique(groups[index], return_counts=True)
        if len(names) < 2:
            raise DataError(
                f'{name}: all {len(index)} images of "train" belong to one group, {names[0]!s}, so that no group is left to choose or to '
                'report on: give splits, or groups of which there are more'
            )
        taken = take_groups(dict(zip(names.tolist(), sizes.tolist(), strict=True)), share * len(index), seed)
        return index[np.isin(groups[index], taken)]
    random = np.random.default_rng(seed)
    if classes is None:
        if len(index) < 2:
            raise DataError(f'{name}: {len(index)} image cannot be divided; three at least are needed (train, val, test)')
        return random.permutation(index)[: max(1, round(share * len(index)))]
    taken = []
    for members in by_class(index, classes):
        count = max(1, round(share * len(members)))
        taken.append(random.permutation(members)[: min(count, len(members) - 1)])
    return np.concatenate(taken)


def by_class(index: np.ndarray, classes: np.ndarray) -> Iterator[np.ndarray]:
    """The images of each class that occurs."""
    for label in np.unique(classes[index]):
        yield index[classes[index] == label]


def check_splits(name: str, splits: np.ndarray, groups: np.ndarray | None):
    """Refuse splits that are empty, and groups that are in two of them.

    Raises:
        DataError: Names the split or the group.
    """
    wrong = sorted(set(np.unique(splits).tolist()) - set(SPLITS))
    if wrong:
        raise DataError(f'{name} has a split {wrong[0]!r}; splits are {", ".join(SPLITS)}')
    empty = [split for split in SPLITS if not (splits == split).any()]
    if empty and groups is not None:
        held = [split for split in SPLITS if split not in empty]
        raise DataError(f'{name}: all {len(set(groups.tolist()))} groups are in {" and ".join(held)}, and {empty[0]} has none')
    if empty:
        raise DataError(f'{name} has no image in its split {empty[0]!r}')
    if groups is None:
        return
    places: dict = {}
    for group, split in zip(groups.tolist(), splits.tolist(), strict=True):
        other = places.setdefault(group, split)
        if other != split:
            raise DataError(f'{name}: group {group!s} has images in {other} and in {split}, so that what is learnt of it is judged on it')


def check_classes(name: str, names: Sequence[str], labels: np.ndarray, splits: np.ndarray):
    """Refuse classes that nothing can be learnt of.

    Raises:
        DataError: Fewer than two classes, or one without an image in 'train'.
    """
    if len(names) < 2:
        raise DataError(f'{name} has one class, {names[0]!r}: there is nothing to tell apart')
    learnt = set(labels[splits == 'train'].tolist())
    missing = [label for label in range(len(names)) if label not in learnt]
    if missing:
        count = int((labels == missing[0]).sum())
        images = 'no image at all' if not count else f'{count} image{"" if count == 1 else "s"}, and none of them in train'
        raise DataError(f'{name}: class {names[missing[0]]!r} has {images}: add images of it, or leave it out')
    asked = set(labels[splits == 'test'].tolist())
    alone = [label for label in range(len(names)) if label not in asked and (labels == label).sum() == 1]
    if alone:
        raise DataError(
            f'{name}: class {names[alone[0]]!r} has one image, which cannot be learnt from and judged on: add images of it, or leave it out'
        )


def check_tags(name: str, names: Sequence[str], values: np.ndarray, splits: np.ndarray):
    """Refuse tags that nothing can be learnt of; the log tells of those that are not judged.

    Raises:
        DataError: A tag that no image of 'train' has, or a split to choose or report on in which no image has any tag.
    """
    unknown = [tag for tag, column in zip(names, values[splits == 'train'].T, strict=True) if not column.any()]
    if unknown:
        raise DataError(f'{name}: no image of train has the tag {unknown[0]!r}: add images of it, or leave out the column')
    for split in ('val', 'test'):
        absent = [tag for tag, column in zip(names, values[splits == split].T, strict=True) if not column.any()]
        if len(absent) == len(names):
            raise DataError(f'{name}: no image of {split} has any tag, such as {absent[0]!r}: add images of them')
        if absent:
            print_log(f'{name}: no image of {split} has {", ".join(map(repr, absent))}: left out of its mean', 'current', logging.WARNING)


def check_targets(name: str, names: Sequence[str], values: np.ndarray, splits: np.ndarray):
    """Refuse numbers that do not vary.

    Raises:
        DataError: All images of a split have the same.
    """
    for split in SPLITS:
        for target, column in zip(names, values[splits == split].T, strict=True):
            if (column == column[0]).all():
                raise DataError(
                    f'{name}: {target!r} is {column[0]:g} for all images of {split} ({len(column)}): there is nothing to predict: '
                    'leave out the column, or add images'
                )
