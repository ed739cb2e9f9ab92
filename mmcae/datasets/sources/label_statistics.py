"""What the label maps of a data set hold, as its own pipeline reads them: looked at before a run, without decoding an image."""

from dataclasses import dataclass, field

import numpy as np
from mmcv.transforms import LoadAnnotations as AnyLoader
from mmengine.fileio import exists
from mmseg.datasets.transforms import LoadAnnotations as MMSegLoader

from ...utils.errors import ConfigError, DataError
from ..transforms.load_label_map import LoadLabelMap, check_size
from ..wrappers import innermost
from .image_headers import missing_files, read_header, spread, turns_upright

ONE_BYTE = ('1', 'L', 'P')  # modes of PIL


@dataclass
class LabelStatistics:
    """What the label maps of a data set hold.

    Attributes:
        maps (int): The number of label maps.
        looked_at (int): Those of them that were read.
        first (str): The first of them.
        pixels (np.ndarray): The pixels of each class, 0 to 255.
        numbers (set[int]): What the files hold.
        ignored_numbers (set[int]): Those of them that stand for no class.
        ignored (list[str]): Maps in which every pixel is ignored.
        binary (list[str]): Maps that hold nothing but 0, a class, and 255, ignored.
        partly_ignored (int): Maps in which some pixels are ignored, these among them.
    """

    maps: int = 0
    looked_at: int = 0
    first: str = ''
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    numbers: set = field(default_factory=set)
    ignored_numbers: set = field(default_factory=set)
    ignored: list = field(default_factory=list)
    binary: list = field(default_factory=list)
    partly_ignored: int = 0


def look_at_labels(dataset, name, num_classes, ignore_index=255, most=1000, complete=True):
    """Read label maps of a data set and count their classes.

    Args:
        dataset (Dataset): mmseg's, or wrappers around several.
        name (str): What messages call it.
        num_classes (int): Of the model.
        ignore_index (int, optional): The class that the loss leaves out. Defaults to 255.
        most (int, optional): The number of maps to be read of each data set, evenly spread; None reads all. Defaults to 1000.
        complete (bool): Every image needs a label map. Defaults to True.

    Returns:
        LabelStatistics: Of all of them together. `looked_at` is 0 where the pipeline has a loader of its own, which may read anything.

    Raises:
        ConfigError: The pipeline turns maps, but not the images.
        DataError: A label map is missing or cannot be used, or holds numbers that are no classes; the message names file and numbers.
    """
    found = LabelStatistics()
    for part in innermost(dataset):
        infos = {info.get('seg_map_path'): info for info in map(part.get_data_info, range(len(part)))}
        if complete and None in infos:
            raise DataError(f'{name}: no label map belongs to {infos[None].get("img_path")}: set data_prefix.seg_map_path of the data set')
        infos.pop(None, None)
        missing = {*missing_files(infos), *(path for path in infos if '://' in path and not exists(path))}
        if missing and complete:
            raise DataError(
                f'{name}: {len(missing)} of {len(infos)} label maps are missing, the first is {min(missing)}: every image needs a label '
                'map of the same name (and the suffix seg_map_suffix) under data_prefix.seg_map_path, or list the complete ones in ann_file'
            )
        infos = [info for path, info in infos.items() if path not in missing]
        found.maps += len(infos)
        loader = loader_of(part)
        if loader is not None:
            turns = turns_upright(part.pipeline.transforms)
            if loader.drawn_on == 'stored' and not turns:
                raise ConfigError(f"{name}: LoadLabelMap(drawn_on='stored') turns the maps, but LoadImageFromFile leaves the images")
            for info in chosen(infos, most, loader, part):
                look_at(info, loader, turns, num_classes, ignore_index, found)
    return found


def loader_of(dataset):
    """The transform by which label maps are read: the pipeline's, or one like mmseg's in it; None for others, which may read anything."""
    for transform in getattr(getattr(dataset, 'pipeline', None), 'transforms', ()):
        if isinstance(transform, LoadLabelMap):
            return transform
        if type(transform) is MMSegLoader:
            keys = ('reduce_zero_label', 'backend_args', 'imdecode_backend')
            return LoadLabelMap(**{key: getattr(transform, key) for key in keys})
        if isinstance(transform, AnyLoader):
            return None
    return None


def chosen(infos, most, loader, dataset):
    """Those that are looked at: evenly spread, and all of more than one byte a pixel where mmseg's own loader would cut them."""
    spaced = {*spread(len(infos), most)}
    cut = not any(transform is loader for transform in dataset.pipeline.transforms)
    for i, info in enumerate(infos):
        header = read_header(info['seg_map_path']) if cut and i not in spaced else None
        if i in spaced or header is not None and header.mode not in ONE_BYTE:
            yield info


def look_at(info, loader, turns, num_classes, ignore_index, found):
    """Read one label map and add it to what has been found."""
    path = info['seg_map_path']
    labels = loader.read(info)
    header = read_header(info.get('img_path', ''))
    if header is not None:
        check_size(labels.shape, header.upright if turns else header.stored, info)
    if labels.dtype == np.uint8:
        counts = np.bincount(labels.ravel(), minlength=256)
        numbers = np.flatnonzero(counts)
        counts = counts[numbers]
    else:
        numbers, counts = np.unique(labels, return_counts=True)
    classes = loader.classes(numbers[None].astype(labels.dtype), info)[0]
    wrong = numbers[(classes >= num_classes) & (classes != ignore_index)]
    if len(wrong):
        raise DataError(f'{path} has the label ids {wrong[:8].tolist()}{no_classes(num_classes, ignore_index)}')
    found.looked_at += 1
    found.first = found.first or path
    found.numbers.update(numbers.tolist())
    found.ignored_numbers.update(numbers[classes == ignore_index].tolist())
    np.add.at(found.pixels, classes, counts)
    labelled = {*classes.tolist()} - {ignore_index}
    if not labelled:
        found.ignored.append(path)
    elif ignore_index in classes:
        found.partly_ignored += 1
        if numbers.tolist() == [0, 255] and labelled == {0}:
            found.binary.append(path)


def no_classes(num_classes, ignore_index):
    """The end of a message about ids that are none of the classes."""
    ignored = f', and {ignore_index} is ignored' if ignore_index is not None else ''
    return (
        f', but the model has the classes 0 to {num_classes - 1}{ignored}: correct the label maps (docs/segmentation.md, "Your own data '
        'set"), say what the ids stand for (remap of mmcae.LoadLabelMap), or correct num_classes of the heads'
    )
