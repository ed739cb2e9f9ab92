"""Labelled images from what people have: a tree of class folders, images beside label maps, or a table."""

import csv
import io
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.logging import print_log

from ...utils.errors import DataError
from ...utils.files import read_file
from ...utils.remote import is_remote
from ...utils.text_files import read_text
from .folder_index import folder_index
from .group_split import groups_of
from .image_folder import EXTENSIONS
from .image_headers import read_header
from .label_maps import read_label_map
from .labelled_images import LabelledImages, LabelMaps, dealt

# What splits are called in the folders and tables of the field.
SPLIT_NAMES = {
    'train': 'train',
    'training': 'train',
    'val': 'val',
    'valid': 'val',
    'validation': 'val',
    'test': 'test',
    'testing': 'test',
}
MAP_FOLDERS = ('label_maps', 'labels', 'annotations', 'masks')
COLUMNS = ('path', 'split', 'group', 'label', 'label_map')  # all others hold numbers


def read_labelled(
    source: str | Path, label_maps: str | Path | None = None, split_by: str | None = None, seed: int = 0, name: str | None = None
) -> LabelledImages:
    """A data set to judge encoders on, with its splits; those that are not given are made, see :func:`.labelled_images.dealt`.

    Args:
        source: One of

            * a folder with a folder for each class, or with such trees in `train`, `val`, `test`;
            * a folder with `images` and one of `label_maps`, `labels`, `annotations`, `masks`, both with the same names in them, directly
              or in `train`, `val`, `test`; label maps are PNG files or others without loss, see :mod:`.label_maps`;
            * a table, `.csv`, with the columns `path` (relative to the table), optionally `split` and `group`, and labels: `label` holds a
              class, `label_map` a file, and the others numbers: all of them 0 or 1, they are tags, else numbers to predict.
        label_maps: The folder of the label maps, where `source` is one of images alone.
        split_by: Regular expression that finds the id of the group (patient, slide, scene) in a path; see :mod:`.group_split`.
        seed: Of splits that are made.
        name: What the data set is called; its file or folder where not given.

    Raises:
        DataError: It is none of these, or see :class:`.labelled_images.LabelledImages`.
    """
    if is_remote(source):
        raise DataError(f'{source} is in a store; labelled images are read from a disk: copy them there')
    path = Path(source).expanduser()
    name = name or path.stem or str(path)
    maps = Path(label_maps).expanduser() if label_maps is not None else next((path / n for n in MAP_FOLDERS if (path / n).is_dir()), None)
    if label_maps is not None and not (maps.is_dir() and path.is_dir()):
        raise DataError(f'{source} and {label_maps} must be folders: one of images, and one of label maps of the same names')
    if path.is_dir() and maps is not None and (label_maps is not None or (path / 'images').is_dir()):
        found = from_label_maps(path if label_maps is not None else path / 'images', maps)
    elif path.is_dir():
        found = from_class_tree(path)
    elif path.suffix == '.csv':
        found = from_table(path)
    else:
        what = 'is neither a folder nor a .csv file' if path.exists() else 'does not exist'
        raise DataError(f'{source} {what}: give a folder of class folders, one with images and label maps, or a table')
    if split_by is not None:
        found['groups'] = grouped(name, found['paths'], split_by)
    classes = found['classes'][1] if found.get('classes') is not None else None
    splits, done = dealt(name, len(found['paths']), found.pop('splits', None), found.get('groups'), classes, seed)
    images = LabelledImages(name=name, splits=splits, **found)
    counts = ', '.join(f'{len(images.index(split)):,} {split}' for split in ('train', 'val', 'test'))
    print_log(f'{name}: {counts}{f" ({done})" if done else ""}; labels: {"; ".join(map(images.describe, images.kinds))}', 'current')
    return images


def grouped(name: str, paths: Sequence[str], pattern: str) -> np.ndarray:
    """The id of each path's group, looked for below the folder that all paths share."""
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    groups = groups_of([os.path.relpath(path, common) for path in paths], pattern)
    without = [path for path, group in zip(paths, groups, strict=True) if not group]
    if without:
        raise DataError(f'{name}: --split-by {pattern!r} finds no id in {len(without):,} of {len(paths):,} paths, such as {without[0]}')
    return np.array(groups)


# ---------------------------------------------------------------- folders


def images_below(folder: Path) -> list[str]:
    """Image files below a folder, relative to it."""
    index = folder_index(str(folder), EXTENSIONS)
    return [index[number] for number in range(len(index))]


def split_folders(folder: Path) -> dict[str, Path]:
    """Its folders `train`, `val`, `test` by our name for them; empty where it has no `train`."""
    found = {SPLIT_NAMES[entry.name.lower()]: entry for entry in sorted(folder.iterdir()) if entry.name.lower() in SPLIT_NAMES}
    return found if 'train' in found else {}


def from_class_tree(root: Path) -> dict:
    """A tree of class folders."""
    folders = split_folders(root) or {None: root}
    paths, labels, splits = [], [], []
    for split, folder in folders.items():
        names = images_below(folder)
        flat = [name for name in names if '/' not in name]
        if flat:
            raise DataError(f'{folder / flat[0]} is not in the folder of a class: {folder} holds a folder for each class, and nothing else')
        paths += [str(folder / name) for name in names]
        labels += [name.split('/')[0] for name in names]
        splits += [split] * len(names)
    if not paths:
        raise DataError(f'There is no image in {root}: it holds a folder for each class, or train, val and test with such folders')
    found = dict(paths=paths, classes=numbered(labels))
    return found if None in folders else dict(found, splits=splits)


def numbered(labels: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Names of classes, sorted, and a number for each label."""
    names, index = np.unique(np.array(labels), return_inverse=True)
    return names.tolist(), index.astype(np.int64)


def from_label_maps(folder: Path, maps: Path) -> dict:
    """Images of a folder, and label maps of the same names in another one."""
    names = images_below(folder)
    splits = [SPLIT_NAMES.get(name.split('/')[0].lower()) if '/' in name else None for name in names]
    files = {os.path.splitext(name)[0]: str(maps / name) for name in images_below(maps)}
    lacking = [name for name in names if os.path.splitext(name)[0] not in files]
    if lacking:
        raise DataError(
            f'{folder / lacking[0]} has no label map: {maps} must hold a file of the same name ({len(lacking):,} of {len(names):,} are '
            'missing)'
        )
    if not names:
        raise DataError(f'There is no image in {folder}')
    map_paths = [files[os.path.splitext(name)[0]] for name in names]
    if len(files) > len(names):
        print_log(f'{maps} has {len(files) - len(names):,} label maps of which {folder} has no image', 'current', logging.WARNING)
    found = dict(paths=[str(folder / name) for name in names])
    found['label_maps'] = label_maps_of(found['paths'], map_paths, maps.parent)
    return found if None in splits else dict(found, splits=splits)


def class_names(root: Path, map_paths: Sequence[str]) -> list[str]:
    """Those in `classes.txt`, one a line, of the classes 0, 1, ...; else numbers up to the highest in the maps, which are all read."""
    listed = root / 'classes.txt'
    if listed.exists():
        return [line.strip() for line in read_text(listed).splitlines() if line.strip()]
    highest = 0
    for path in map_paths:
        numbers = read_label_map(path, read_file(path))
        numbers = numbers[numbers != 255]
        highest = max(highest, int(numbers.max()) if numbers.size else 0)
    return [str(number) for number in range(highest + 1)]


def label_maps_of(images: Sequence[str], maps: Sequence[str], root: Path) -> LabelMaps:
    """The label maps of images. Each is checked when it is read: against the size of its image, and against the names of the classes."""
    names = class_names(root, maps)

    def read(number: int) -> np.ndarray:
        path, image = maps[number], images[number]
        labels, header = read_label_map(path, read_file(path)), read_header(image)
        if header is not None and labels.shape != header.upright:
            found, wanted = (f'{width}x{height}' for height, width in (labels.shape, header.upright))
            raise DataError(
                f'{path} is {found} pixels (width x height), but {image} is {wanted}: store the map in the size of its image, resized '
                'without interpolation (nearest)'
            )
        wrong = labels[(labels != 255) & ((labels < 0) | (labels >= len(names)))]
        if wrong.size:
            raise DataError(
                f'{path} has the number {wrong[0]}; {root / "classes.txt"} names the classes 0 to {len(names) - 1}, and 255 is ignored: '
                'add the name, or correct the label map'
            )
        return labels

    return LabelMaps(names, read, maps)


# ---------------------------------------------------------------- tables


def from_table(path: Path) -> dict:
    """A table of comma-separated values."""
    reader = csv.DictReader(io.StringIO(read_text(path)))
    rows, names = list(reader), reader.fieldnames or []
    twice = [column for number, column in enumerate(names) if column in names[:number]]
    if twice:
        raise DataError(f'{path} has two columns called {twice[0]!r}: rename or remove one of them')
    if not rows or 'path' not in names:
        raise DataError(f'{path} has no column "path": its first line names the columns, its others are images')
    for line, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise DataError(f'{path}, line {line}, has {"more" if None in row else "fewer"} cells than the first line names columns')
    columns = {name: [row[name].strip() for row in rows] for name in names}
    found: dict = dict(paths=[str(path.parent / cell) for cell in filled(columns['path'], 'path', path)])
    lines: dict = {}
    for line, image in enumerate(map(os.path.normpath, found['paths']), 2):
        if lines.setdefault(image, line) != line:
            raise DataError(f'{path}, lines {lines[image]} and {line}, name the same image, {image}: keep one of them')
    if 'split' in columns:
        found['splits'] = [split_named(cell, path, line) for line, cell in enumerate(columns['split'], 2)]
    if 'group' in columns:
        found['groups'] = np.array(filled(columns['group'], 'group', path))
    if 'label' in columns:
        found['classes'] = numbered(filled(columns['label'], 'label', path))
    if 'label_map' in columns:
        maps = [str(path.parent / cell) for cell in filled(columns['label_map'], 'label_map', path)]
        found['label_maps'] = label_maps_of(found['paths'], maps, path.parent)
    numbers = {name: parsed(cells, name, path) for name, cells in columns.items() if name not in COLUMNS}
    tags = {name: values == 1 for name, values in numbers.items() if np.isin(values, (0, 1)).all()}
    if tags:
        found['tags'] = list(tags), np.stack(list(tags.values()), axis=1)
    if len(tags) < len(numbers):
        numbers = {name: values for name, values in numbers.items() if name not in tags}
        found['numbers'] = list(numbers), np.stack(list(numbers.values()), axis=1)
    return found


def split_named(cell: str, path: Path, line: int) -> str:
    """Our name of a split."""
    if cell.lower() not in SPLIT_NAMES:
        raise DataError(f'{path}, line {line}: {cell!r} is no split; splits are train, val and test')
    return SPLIT_NAMES[cell.lower()]


def filled(cells: list[str], name: str, path: Path) -> list[str]:
    """The cells of a column, none of which may be empty."""
    if '' in cells:
        raise DataError(f'{path}, line {cells.index("") + 2}: the column {name!r} is empty')
    return cells


def parsed(cells: list[str], name: str, path: Path) -> np.ndarray:
    """The cells of a column as finite numbers, float64 (N,)."""
    values = []
    for line, cell in enumerate(cells, 2):
        try:
            values.append(float(cell))
        except ValueError:
            values.append(float('nan'))
        if not np.isfinite(values[-1]):
            raise DataError(
                f'{path}, line {line}: {cell!r} in the column {name!r} is no number. Columns other than {", ".join(COLUMNS)} hold numbers '
                'to predict, or 0 and 1; leave out the column, or call it "label" if it holds classes'
            )
    return np.array(values)
