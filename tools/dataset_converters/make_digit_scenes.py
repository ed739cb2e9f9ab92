"""Compose scikit-learn's bundled handwritten digits into colour scenes for pretraining, classification, detection and segmentation.

The 1,797 real 8x8 digits of `sklearn.datasets.load_digits` (UCI) are split into train, val and test once and for all, and every image is
composed from digits of its own split only. Writes, in the formats that the ordinary loaders read:

    classification/{train,val,test}/{0..9}/*.png   32x32, one digit each (mmpretrain CustomDataset)
    scenes96/{split}/*.png, annotations/scenes96_{split}.json   COCO instances with boxes and masks of the visible part (mmdet)
    scenes64/{split}/*.png, scenes64_labels/{split}/*.png, scenes96_labels/...   label maps, 0 = background, 1..10 = digit 0..9 (mmseg)
    pretrain/{tiles32,scenes64,scenes96}/*.png     unlabelled, from training digits only
    sources.json   which digits stand in which image;  sheet.png   a look at all of it

    python tools/dataset_converters/make_digit_scenes.py --out data/digits
"""

import argparse
import colorsys
import json
import math
import os
import zlib
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from rich.progress import track

VERSION = 1  # raise it when the images change, so that older data is not mistaken for new
MARKER = 'digit_scenes.json'
SPLITS = {'train': 0.60, 'val': 0.15, 'test': 0.25}
CHUNK = 50  # images per job
MIN_DISTANCE = 0.5  # between the centres of two digits, as a share of the later one's size
MIN_VISIBLE = 0.8  # of a digit behind others


@dataclass(frozen=True)
class Tree:
    """One folder of images that look alike.

    Args:
        name (str): Where it stands in the output folder.
        side (int): Height and width of the images in pixels.
        counts (dict): Number of images of each split.
        digits (tuple): How many digits an image has: one of these, equally likely. (1,) means one in the centre.
        digit_size (tuple): Smallest and largest side of a digit's field in pixels.
        fragments (tuple): Smallest and largest number of stroke fragments.
        labelled (bool): Whether splits, labels and annotations are written. Defaults to True.
    """

    name: str
    side: int
    counts: dict
    digits: tuple
    digit_size: tuple
    fragments: tuple
    labelled: bool = True


@dataclass
class Instance:
    """A digit in an image: its number among the sources, its centre (x, y), and the pixels (side, side) that no later one hides."""

    source: int
    centre: np.ndarray
    visible: np.ndarray

    def __post_init__(self):
        self.area = self.visible.sum()


SCENES = {'train': 2000, 'val': 200, 'test': 300}
TREES = (
    Tree('classification', 32, {'train': 6000, 'val': 1000, 'test': 2000}, (1,), (34, 42), (0, 2)),
    Tree('scenes64', 64, SCENES, (1, 2, 2, 3, 3, 4), (24, 40), (1, 3)),
    Tree('scenes96', 96, SCENES, (1, 1, 2, 2, 2, 3, 3, 3, 4), (34, 52), (1, 4)),
    Tree('pretrain/tiles32', 32, {'train': 8000}, (1,), (34, 42), (0, 2), labelled=False),
    Tree('pretrain/scenes64', 64, {'train': 2000}, (1, 2, 2, 3, 3, 4), (24, 40), (1, 3), labelled=False),
    Tree('pretrain/scenes96', 96, {'train': 1000}, (1, 1, 2, 2, 2, 3, 3, 3, 4), (34, 52), (1, 4), labelled=False),
)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path('data/digits'), help='folder to write (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='other scenes from the same split of the digits (default: %(default)s)')
    parser.add_argument('--scale', type=float, default=1.0, help='multiplies the number of images (default: %(default)s)')
    parser.add_argument('--workers', type=int, default=os.cpu_count(), help='processes; does not change the result (default: %(default)s)')
    args = parser.parse_args()
    if args.scale <= 0 or args.workers < 1 or args.seed < 0:
        parser.error('--scale and --workers must be positive, --seed must not be negative')

    settings = {'version': VERSION, 'seed': args.seed, 'scale': args.scale}
    try:
        complete = is_complete(args.out, settings)
    except FileExistsError as error:
        parser.error(str(error))
    if complete:
        print(f'{args.out} is complete already ({settings}): nothing to do.')
        return
    from sklearn.datasets import load_digits  # takes longer to import than a run takes that has nothing to do

    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f'Cannot write to {args.out}: {error.strerror}. Choose another folder with --out.')
    write_json(args.out / MARKER, {**settings, 'complete': False})
    sources = load_digits()
    splits = split_digits(sources.target)
    records = render_all(args, sources.images, sources.target, splits)
    write_annotations(args.out, records)
    write_json(args.out / 'sources.json', {'splits': splits, 'images': {r['path']: r['sources'] for r in records}})
    write_sheet(args.out, records)
    write_json(args.out / MARKER, {**settings, 'complete': True})
    print(f'Wrote {len(records):,} images to {args.out}; {args.out / "sheet.png"} shows some of each kind.')


def is_complete(out, settings):
    """Whether the folder holds exactly these data; a FileExistsError where it holds something else."""
    if out.is_file():
        raise FileExistsError(f'{out} is a file. Choose a folder with --out.')
    if not out.exists() or not any(out.iterdir()):
        return False
    marker = out / MARKER
    if not marker.exists():
        raise FileExistsError(f'{out} is not empty and was not made by this tool. Choose another folder with --out.')
    try:
        found = json.loads(marker.read_text())
    except ValueError:
        raise FileExistsError(f'{marker} is damaged. Delete {out} or choose another folder with --out.') from None
    complete = found.pop('complete')
    if found != settings:
        raise FileExistsError(f'{out} holds digit scenes made with {found}, not {settings}. Delete it or choose another folder with --out.')
    return complete


def split_digits(digits):
    """Deal the source digits of each class to the splits, independent of the seed: no digit ever changes sides."""
    rng = np.random.default_rng(0)
    splits = {name: [] for name in SPLITS}
    ends = np.cumsum(list(SPLITS.values()))
    for digit in range(10):
        members = rng.permutation(np.flatnonzero(digits == digit))
        parts = np.split(members, np.round(ends[:-1] * len(members)).astype(int))
        for name, part in zip(splits, parts, strict=True):
            splits[name] += part.tolist()
    return {name: sorted(indices) for name, indices in splits.items()}


def render_all(args, images, digits, splits):
    """Render and write all images; one record per image, in a fixed order."""
    jobs = []
    for tree_index, tree in enumerate(TREES):
        for split, count in tree.counts.items():
            count = max(10, round(count * args.scale))
            for start in range(0, count, CHUNK):
                jobs.append((tree_index, split, range(start, min(start + CHUNK, count))))
    composer = Composer(args.out, args.seed, images, digits, splits)
    with Pool(args.workers, initializer=_start_worker, initargs=(composer,)) as pool:
        chunks = track(pool.imap(_run_job, jobs), total=len(jobs), description='Composing digit scenes')
        return [record for chunk in chunks for record in chunk]


_composer = None


def _start_worker(composer):
    global _composer
    _composer = composer


def _run_job(job):
    tree_index, split, indices = job
    return [_composer.write_image(tree_index, split, index) for index in indices]


class Composer:
    """Composes single images; each depends on the seed and its own number alone."""

    def __init__(self, out, seed, images, digits, splits):
        self.out, self.seed, self.digits = out, seed, digits
        # An empty border lets strokes fade out where the 8x8 original cuts them off.
        self.strokes = [Image.fromarray(np.pad(image * (255 / 16), 2).astype(np.uint8)) for image in images]
        self.splits = {split: np.array(indices) for split, indices in splits.items()}
        self.by_class = {split: [indices[digits[indices] == digit] for digit in range(10)] for split, indices in self.splits.items()}

    def write_image(self, tree_index, split, index):
        """Compose one image, write it with its label map, and return its record."""
        tree = TREES[tree_index]
        rng = np.random.default_rng([self.seed, tree_index, list(SPLITS).index(split), index])
        canvas = background(rng, tree.side)
        fragments = [self.draw_fragment(rng, canvas, split) for _ in range(rng.integers(tree.fragments[0], tree.fragments[1] + 1))]
        one_digit = tree.digits == (1,)
        instances = self.draw_tile(rng, canvas, tree, split, index % 10) if one_digit else self.draw_scene(rng, canvas, tree, split)
        canvas += 0.02 * rng.standard_normal(canvas.shape, np.float32)

        folder = tree.name if not tree.labelled else f'{tree.name}/{split}' + (f'/{index % 10}' if one_digit else '')
        path = f'{folder}/{index:05d}.png'
        save_png(self.out / path, (canvas.clip(0, 1) * 255).round().astype(np.uint8))
        record = {'path': path, 'sources': {'digits': [instance.source for instance in instances], 'fragments': fragments}}
        if tree.labelled and not one_digit:
            labels = np.zeros((tree.side, tree.side), np.uint8)
            for instance in instances:
                labels[instance.visible] = self.digits[instance.source] + 1
            save_png(self.out / f'{tree.name}_labels/{split}/{index:05d}.png', labels)
            record['instances'] = [coco_instance(self.digits[instance.source], instance.visible) for instance in instances]
        return record

    def draw_tile(self, rng, canvas, tree, split, digit):
        """Draw one digit within 2 pixels of the centre."""
        source = int(rng.choice(self.by_class[split][digit]))
        centre = tree.side / 2 + rng.uniform(-2, 2, 2)
        cover = self.place(source, (0, 0, tree.side, tree.side), rng.uniform(*tree.digit_size), centre, random_angle(rng))
        paint(canvas, cover, bright_tint(rng))
        return [Instance(source, centre, cover > 0.5)]

    def draw_scene(self, rng, canvas, tree, split):
        """Draw several digits, each wholly inside the image and not too close to another, so that all stay legible."""
        side, instances = tree.side, []
        for _ in range(rng.choice(tree.digits)):
            for _ in range(30):
                source = int(rng.choice(self.splits[split]))
                size, angle = rng.uniform(*tree.digit_size), random_angle(rng)
                centre = rng.uniform(size * 0.35, side - size * 0.35, 2)
                if any(np.hypot(*(centre - other.centre)) < size * MIN_DISTANCE for other in instances):
                    continue
                cover = self.place(source, (0, 0, side, side), size, centre, angle)
                solid = cover > 0.5
                if solid[[0, -1]].any() or solid[:, [0, -1]].any():
                    continue
                if all((other.visible & ~solid).sum() > other.area * MIN_VISIBLE for other in instances):
                    paint(canvas, cover, bright_tint(rng))
                    for other in instances:
                        other.visible &= ~solid
                    instances.append(Instance(source, centre, solid))
                    break
        return instances

    def draw_fragment(self, rng, canvas, split):
        """Draw a short piece of some digit's stroke anywhere, as clutter; returns the digit's number."""
        source, side = int(rng.choice(self.splits[split])), canvas.shape[0]
        ys, xs = np.nonzero(np.asarray(self.strokes[source]) > 150)
        pick, size, angle, radius = rng.integers(len(ys)), rng.uniform(28, 48), random_angle(rng), rng.uniform(5, 9)
        x, y = spot = rng.uniform(0, side, 2)
        left, top = (max(0, int(value - radius) - 1) for value in spot)
        right, bottom = (min(side, int(value + radius) + 2) for value in spot)
        window = (left, top, right - left, bottom - top)
        cover = self.place(source, window, size, spot, angle, anchor=(xs[pick] + 0.5, ys[pick] + 0.5))
        distance = np.hypot(np.arange(left, right) + 0.5 - x, (np.arange(top, bottom) + 0.5 - y)[:, None])
        paint(canvas[top:bottom, left:right], cover * (radius + 1 - distance).clip(0, 1), bright_tint(rng))
        return source

    def place(self, source, window, size, centre, angle, anchor=(6, 6)):
        """How much each pixel of a window is covered by a digit: float array (height, width), 0 to 1.

        Args:
            source (int): Number of the digit.
            window (tuple[int, int, int, int]): left, top, width, height in the image.
            size (float): Side of the digit's 8x8 field in pixels.
            centre (tuple[float, float]): Where the anchor comes to stand in the image (x, y).
            angle (float): Rotation in radians.
            anchor (tuple[float, float]): Point (x, y) of the padded 12x12 original; by default its centre.
        """
        cos, sin = math.cos(angle) * 8 / size, math.sin(angle) * 8 / size
        x, y = centre[0] - window[0], centre[1] - window[1]
        matrix = (cos, sin, anchor[0] - cos * x - sin * y, -sin, cos, anchor[1] + sin * x - cos * y)
        field = self.strokes[source].transform(window[2:], Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
        return ((np.asarray(field, np.float32) / 255 - 0.25) / 0.4).clip(0, 1)


def background(rng, side):
    """A dark gradient between two colours with a soft texture: float array (side, side, 3), 0 to 1."""
    colours = [np.float32(colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.3, 0.9), rng.uniform(0.1, 0.45))) for _ in range(2)]
    angle = rng.uniform(0, 2 * math.pi)
    x = np.linspace(-0.5, 0.5, side, dtype=np.float32)
    y = x[:, None]
    blend = (0.5 + (x * math.cos(angle) + y * math.sin(angle)) / math.sqrt(2))[..., None]
    grain = rng.uniform(0.02, 0.07) * rng.standard_normal((side // 4, side // 4), np.float32)
    texture = np.asarray(Image.fromarray(grain).resize((side, side), Image.Resampling.BICUBIC))
    return blend * colours[0] + (1 - blend) * colours[1] + texture[..., None]


def bright_tint(rng):
    return np.float32(colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.15, 0.75), rng.uniform(0.65, 1.0)))


def random_angle(rng):
    return math.radians(rng.uniform(-15, 15))


def paint(canvas, cover, colour):
    """Blend a colour into the canvas, in place."""
    canvas += cover[..., None].astype(np.float32) * (colour - canvas)


def coco_instance(digit, visible):
    """Annotation of one digit from its visible pixels."""
    rle = coco_mask.encode(np.asfortranarray(visible.astype(np.uint8)))
    return {
        'category_id': int(digit) + 1,
        'bbox': coco_mask.toBbox(rle).tolist(),
        'area': int(visible.sum()),
        'segmentation': {'size': rle['size'], 'counts': rle['counts'].decode()},
        'iscrowd': 0,
    }


def write_annotations(out, records):
    """COCO files of the 96-pixel scenes, one for each split."""
    tree = next(tree for tree in TREES if tree.name == 'scenes96')
    for split in tree.counts:
        images, annotations = [], []
        for record in records:
            if record['path'].startswith(f'{tree.name}/{split}/'):
                images.append({'id': len(images), 'file_name': Path(record['path']).name, 'height': tree.side, 'width': tree.side})
                for instance in record['instances']:
                    annotations.append({'id': len(annotations) + 1, 'image_id': images[-1]['id'], **instance})
        categories = [{'id': digit + 1, 'name': str(digit)} for digit in range(10)]
        content = {
            'info': {'description': f'digit scenes, {split}'},
            'licenses': [],
            'images': images,
            'annotations': annotations,
            'categories': categories,
        }
        write_json(out / f'annotations/scenes96_{split}.json', content)


def write_sheet(out, records):
    """One picture with images of every kind, label maps below their scenes."""
    rows = []
    for tree in TREES:
        split = 'test' if tree.labelled else 'train'
        prefix = f'{tree.name}/{split}/' if tree.labelled else f'{tree.name}/'
        paths = [out / r['path'] for r in records if r['path'].startswith(prefix)][: 1152 // tree.side // 2]
        rows.append(paths)
        labels = [Path(str(p).replace(f'/{tree.name}/', f'/{tree.name}_labels/')) for p in paths]
        if labels[0] != paths[0] and labels[0].exists():
            rows.append(labels)
    sheet = np.full((0, 1152, 3), 255, np.uint8)
    for paths in rows:
        pictures = [np.asarray(Image.open(path)) for path in paths]
        pictures = [LABEL_COLOURS[p] if p.ndim == 2 else p for p in pictures]
        row = np.concatenate(pictures, axis=1).repeat(2, axis=0).repeat(2, axis=1)
        row = np.pad(row, ((4, 4), (0, 1152 - row.shape[1]), (0, 0)), constant_values=255)
        sheet = np.concatenate([sheet, row])
    save_png(out / 'sheet.png', sheet)


LABEL_COLOURS = np.array(
    [(0, 0, 0)] + [tuple(round(255 * c) for c in colorsys.hsv_to_rgb(i / 10, 0.75, 1 - 0.3 * (i % 2))) for i in range(10)], np.uint8
)


def save_png(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, compress_level=1, compress_type=zlib.Z_HUFFMAN_ONLY)  # noise does not compress any better


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


if __name__ == '__main__':
    main()
