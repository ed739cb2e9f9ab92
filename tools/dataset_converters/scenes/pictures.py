"""The small pictures that scenes are composed of: scikit-learn's digits, or a class tree of pictures on plain ground."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SPLITS = ('train', 'val', 'test')
MARGIN = 2  # empty pixels around an object, in which its edges fade out
CONTRAST = 16  # of 255, by which a pixel of an object differs from the ground
LARGEST = 64  # side in pixels of what is drawn from; scenes show objects smaller than that
SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.gif', '.tif', '.tiff', '.webp', '.ppm', '.pgm')
MAX_CLASSES = 254  # a label map has a byte a pixel: 0 is the background, 255 what mmseg ignores


@dataclass(frozen=True)
class Picture:
    """One object as it can be drawn.

    Args:
        cover (Image): Mode L: how far each pixel belongs to the object, 0 to 255, with a margin of 0 around it.
        texture (Image | None): Of the same size: grey (L), drawn in shades of a random colour; or in colours of its own (RGB). None for
            strokes, which are drawn in one random colour.
        side (int): Length in pixels of `cover` that becomes an object's size in a scene.
    """

    cover: Image.Image
    texture: Image.Image | None
    side: int


class Digits:
    """The 1,797 digits of `sklearn.datasets.load_digits`, 8x8 pixels, dealt to the splits once and for all."""

    kind = 'digit'
    classes = tuple('0123456789')
    shares = {'train': 0.60, 'val': 0.15, 'test': 0.25}

    def __init__(self):
        from sklearn.datasets import load_digits  # takes longer to import than a run takes that has nothing to do

        sources = load_digits()
        self.labels = sources.target
        # An empty border lets strokes fade out where the 8x8 original cuts them off.
        self.strokes = [Image.fromarray(np.pad(image * (255 / 16), MARGIN).astype(np.uint8)) for image in sources.images]
        self.splits = self.deal()

    def deal(self):
        """Deal the digits of each class to the splits, independent of any seed: no digit ever changes sides."""
        rng = np.random.default_rng(0)
        splits = {name: [] for name in SPLITS}
        ends = np.cumsum([self.shares[name] for name in SPLITS])
        for digit in range(10):
            members = rng.permutation(np.flatnonzero(self.labels == digit))
            parts = np.split(members, np.round(ends[:-1] * len(members)).astype(int))
            for name, part in zip(splits, parts, strict=True):
                splits[name] += part.tolist()
        return {name: sorted(indices) for name, indices in splits.items()}

    def picture(self, index):
        return Picture(self.strokes[index], None, 8)

    def name(self, index):
        return index

    def provenance(self):
        return {'splits': self.splits}


class ClassTree:
    """A folder `{train,val,test}/CLASS/*.png` of pictures that each show one object on plain ground.

    The ground is what the border of a picture mostly shows, or what is transparent. Everything else is the object, holes in it included.

    Args:
        folder (Path): The class tree.

    Raises:
        DataError: A split is missing or empty, splits have different classes, or there are more than a label map can hold.
    """

    kind = 'picture'

    def __init__(self, folder):
        from mmcae.utils.errors import DataError

        self.folder, self.files, self.labels, self.splits = Path(folder), [], [], {}
        found = {split: folders_in(self.folder / split) for split in SPLITS}
        self.classes = tuple(found['train'])
        for split, names in found.items():
            if not names:
                raise DataError(f'{self.folder / split} has no class folders: a class tree is {{train,val,test}}/CLASS/*.png')
            if tuple(names) != self.classes:
                odd = sorted(set(names) ^ set(self.classes))[0]
                raise DataError(f'{self.folder}: the class folder {odd!r} is in one of {split} and train alone; all splits need the same')
        if len(self.classes) > MAX_CLASSES:
            raise DataError(f'{self.folder} has {len(self.classes)} classes; a label map of 8 bits can hold {MAX_CLASSES}')
        for split in SPLITS:
            first = len(self.files)
            for label, name in enumerate(self.classes):
                files = sorted(file for file in os.listdir(self.folder / split / name) if is_picture(file))
                if not files:
                    raise DataError(f'{self.folder / split / name} has no pictures ({", ".join(SUFFIXES)})')
                self.files += [f'{split}/{name}/{file}' for file in files]
                self.labels += [label] * len(files)
            self.splits[split] = list(range(first, len(self.files)))
        self.labels = np.array(self.labels)

    def digest(self):
        """A checksum over the names of the pictures."""
        return hashlib.sha256('\n'.join(self.files).encode(errors='surrogateescape')).hexdigest()[:16]

    def picture(self, index):
        from mmcae.utils.errors import DataError

        path = self.folder / self.files[index]
        try:
            with Image.open(path) as image:
                return cut_out(image)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f'{path} cannot be used: {error}. Repair it or take it out of the class tree') from error

    def name(self, index):
        return self.files[index]

    def provenance(self):
        return {}


def folders_in(folder):
    """Names of the folders in a folder, sorted; those that begin with a dot are nobody's classes."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != '.') if folder.is_dir() else []


def is_picture(name):
    return name.lower().endswith(SUFFIXES) and name[0] != '.'


def cut_out(image):
    """Cut the object of a picture out of its ground.

    Args:
        image (Image): Of 8 bits a channel, with or without transparency.

    Returns:
        Picture: The object alone, no larger than `LARGEST`.

    Raises:
        ValueError: The picture has more than 8 bits, or nothing but ground.
    """
    from scipy import ndimage

    if image.mode.startswith(('I', 'F')):
        raise ValueError(f'it has more than 8 bits a channel (mode {image.mode})')
    transparent = 'A' in image.mode or 'transparency' in image.info
    image = image.convert('RGBA' if transparent else 'RGB')
    image.thumbnail((LARGEST, LARGEST))
    pixels = np.asarray(image)
    colours = pixels[..., :3]
    if transparent:
        cover = pixels[..., 3]
    else:
        border = np.concatenate([colours[0], colours[-1], colours[:, 0], colours[:, -1]])
        different = np.abs(colours - np.median(border, axis=0)).max(-1) >= CONTRAST
        cover = ndimage.binary_fill_holes(different).astype(np.uint8) * 255
    ys, xs = np.nonzero(cover > 127)
    if not len(ys):
        raise ValueError('it shows nothing but plain ground')
    window = slice(ys.min(), ys.max() + 1), slice(xs.min(), xs.max() + 1)
    grey = (colours == colours[..., :1]).all()
    texture = np.pad(colours[..., 0][window], MARGIN) if grey else np.pad(colours[window], ((MARGIN,) * 2, (MARGIN,) * 2, (0, 0)))
    cover = np.pad(cover[window], MARGIN)
    return Picture(Image.fromarray(cover), Image.fromarray(texture), max(cover.shape) - 2 * MARGIN)
