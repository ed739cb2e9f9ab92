"""Draw small pictures onto coloured grounds, and keep track of what is visible of each."""

import colorsys
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .files import coco_instance, save_png
from .pictures import SPLITS

MIN_DISTANCE = 0.5  # between the centres of two objects, as a share of the later one's size
MIN_VISIBLE = 0.8  # of an object behind others


@dataclass(frozen=True)
class Tree:
    """One folder of images that look alike.

    Args:
        name (str): Where it stands in the output folder.
        side (int): Height and width of the images in pixels.
        counts (dict): Number of images of each split.
        objects (tuple): How many objects an image has: one of these, equally likely. (1,) means one in the centre.
        size (tuple): Smallest and largest size of an object in pixels; see :class:`~scenes.pictures.Picture`.
        fragments (tuple): Smallest and largest number of fragments of objects.
        labelled (bool): Whether splits, labels and annotations are written. Defaults to True.
    """

    name: str
    side: int
    counts: dict
    objects: tuple
    size: tuple
    fragments: tuple
    labelled: bool = True

    @property
    def is_tiles(self):
        return self.objects == (1,)


SCENES = {'train': 2000, 'val': 200, 'test': 300}
SCENES64 = Tree('scenes64', 64, SCENES, (1, 2, 2, 3, 3, 4), (24, 40), (1, 3))
SCENES96 = Tree('scenes96', 96, SCENES, (1, 1, 2, 2, 2, 3, 3, 3, 4), (34, 52), (1, 4))
PRETRAIN64 = Tree('pretrain/scenes64', 64, {'train': 2000}, SCENES64.objects, SCENES64.size, SCENES64.fragments, labelled=False)
PRETRAIN96 = Tree('pretrain/scenes96', 96, {'train': 1000}, SCENES96.objects, SCENES96.size, SCENES96.fragments, labelled=False)


@dataclass
class Instance:
    """An object in an image: the number of its picture, its centre (x, y), and the pixels (side, side) that no later one hides."""

    source: int
    centre: np.ndarray
    visible: np.ndarray

    def __post_init__(self):
        self.area = self.visible.sum()


class Composer:
    """Composes single images; each depends on the seed and its own number alone.

    Args:
        out (Path): The output folder.
        seed (int): Of everything random.
        pictures (Digits | ClassTree): What to draw.
        trees (Sequence[Tree]): What is to be composed.
    """

    def __init__(self, out, seed, pictures, trees):
        self.out, self.seed, self.pictures, self.trees = out, seed, pictures, trees
        self.splits = {split: np.array(indices) for split, indices in pictures.splits.items()}

    def write_image(self, tree_index, split, index):
        """Compose one image, write it with its label map, and return its record."""
        tree, labels = self.trees[tree_index], self.pictures.labels
        label = index % len(self.pictures.classes)
        rng = np.random.default_rng([self.seed, tree_index, SPLITS.index(split), index])
        canvas = background(rng, tree.side)
        fragments = [self.draw_fragment(rng, canvas, split) for _ in range(rng.integers(tree.fragments[0], tree.fragments[1] + 1))]
        instances = self.draw_tile(rng, canvas, tree, split, label) if tree.is_tiles else self.draw_scene(rng, canvas, tree, split)
        canvas += 0.02 * rng.standard_normal(canvas.shape, np.float32)

        folder = f'{tree.name}/{split}' if tree.labelled else tree.name
        if tree.labelled and tree.is_tiles:
            folder = f'{folder}/{self.pictures.classes[label]}'
        path = f'{folder}/{index:05d}.png'
        save_png(self.out / path, (canvas.clip(0, 1) * 255).round().astype(np.uint8))
        drawn, name = [instance.source for instance in instances], self.pictures.name
        sources = {f'{self.pictures.kind}s': [name(source) for source in drawn], 'fragments': [name(source) for source in fragments]}
        record = {'path': path, 'sources': sources}
        if tree.labelled and not tree.is_tiles:
            label_map = np.zeros((tree.side, tree.side), np.uint8)
            for instance in instances:
                label_map[instance.visible] = labels[instance.source] + 1
            save_png(self.out / f'{tree.name}_labels/{split}/{index:05d}.png', label_map)
            record['instances'] = [coco_instance(labels[instance.source] + 1, instance.visible) for instance in instances]
        return record

    def draw_tile(self, rng, canvas, tree, split, label):
        """Draw one object within 2 pixels of the centre."""
        members = self.splits[split]
        source = int(rng.choice(members[self.pictures.labels[members] == label]))
        centre = tree.side / 2 + rng.uniform(-2, 2, 2)
        whole = (0, 0, tree.side, tree.side)
        cover, texture = place(self.pictures.picture(source), whole, rng.uniform(*tree.size), centre, random_angle(rng))
        paint(canvas, cover, coloured(texture, rng))
        return [Instance(source, centre, cover > 0.5)]

    def draw_scene(self, rng, canvas, tree, split):
        """Draw several objects, each wholly inside the image and not too close to another, so that all can be recognised."""
        side, instances = tree.side, []
        for _ in range(rng.choice(tree.objects)):
            for _ in range(30):
                source = int(rng.choice(self.splits[split]))
                size, angle = rng.uniform(*tree.size), random_angle(rng)
                centre = rng.uniform(size * 0.35, side - size * 0.35, 2)
                if any(np.hypot(*(centre - other.centre)) < size * MIN_DISTANCE for other in instances):
                    continue
                cover, texture = place(self.pictures.picture(source), (0, 0, side, side), size, centre, angle)
                solid = cover > 0.5
                if not solid.any() or solid[[0, -1]].any() or solid[:, [0, -1]].any():
                    continue
                if all((other.visible & ~solid).sum() > other.area * MIN_VISIBLE for other in instances):
                    paint(canvas, cover, coloured(texture, rng))
                    for other in instances:
                        other.visible &= ~solid
                    instances.append(Instance(source, centre, solid))
                    break
        return instances

    def draw_fragment(self, rng, canvas, split):
        """Draw a small piece of some object anywhere, as clutter; returns the picture's number."""
        source, side = int(rng.choice(self.splits[split])), canvas.shape[0]
        picture = self.pictures.picture(source)
        ys, xs = np.nonzero(np.asarray(picture.cover) > 150)
        pick, size, angle, radius = rng.integers(len(ys)), rng.uniform(28, 48), random_angle(rng), rng.uniform(5, 9)
        x, y = spot = rng.uniform(0, side, 2)
        left, top = (max(0, int(value - radius) - 1) for value in spot)
        right, bottom = (min(side, int(value + radius) + 2) for value in spot)
        window = (left, top, right - left, bottom - top)
        cover, texture = place(picture, window, size, spot, angle, anchor=(xs[pick] + 0.5, ys[pick] + 0.5))
        distance = np.hypot(np.arange(left, right) + 0.5 - x, (np.arange(top, bottom) + 0.5 - y)[:, None])
        paint(canvas[top:bottom, left:right], cover * (radius + 1 - distance).clip(0, 1), coloured(texture, rng))
        return source


def place(picture, window, size, centre, angle, anchor=None):
    """Where a picture comes to stand in a window of an image.

    Args:
        picture (Picture): What to draw.
        window (tuple[int, int, int, int]): left, top, width, height in the image.
        size (float): Size of the object in pixels: what `picture.side` becomes.
        centre (tuple[float, float]): Where the anchor comes to stand in the image (x, y).
        angle (float): Rotation in radians.
        anchor (tuple[float, float]): Point (x, y) of the picture; by default its centre.

    Returns:
        tuple: How far each pixel of the window is covered, float32 (height, width), 0 to 1; and the colours there, float32 (height, width)
        or (height, width, 3), 0 to 1, or None.
    """
    anchor = anchor or (picture.cover.width / 2, picture.cover.height / 2)
    cos, sin = math.cos(angle) * picture.side / size, math.sin(angle) * picture.side / size
    x, y = centre[0] - window[0], centre[1] - window[1]
    matrix = (cos, sin, anchor[0] - cos * x - sin * y, -sin, cos, anchor[1] + sin * x - cos * y)

    def drawn(image):
        return np.asarray(image.transform(window[2:], Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC), np.float32) / 255

    return ((drawn(picture.cover) - 0.25) / 0.4).clip(0, 1), None if picture.texture is None else drawn(picture.texture)


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


def coloured(texture, rng):
    """The colours of an object: its own, shades of a bright tint, or that tint alone."""
    if texture is not None and texture.ndim == 3:
        return texture
    tint = np.float32(colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.15, 0.75), rng.uniform(0.65, 1.0)))
    return tint if texture is None else texture[..., None] * tint


def random_angle(rng):
    return math.radians(rng.uniform(-15, 15))


def paint(canvas, cover, colour):
    """Blend colours into the canvas, in place."""
    canvas += cover[..., None].astype(np.float32) * (colour - canvas)
