"""The files of scenes: images, COCO annotations, a sheet to look at, and the marker that tells whose folder it is."""

import colorsys
import json
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

SHEET_WIDTH = 1152


class Refused(Exception):
    """A folder that scenes cannot be written to; the message tells the remedy."""


def is_complete(out, marker, settings):
    """Whether a folder holds exactly these scenes.

    Args:
        out (Path): The folder.
        marker (str): Name of the file in it that says what it holds.
        settings (dict): What it should hold.

    Raises:
        Refused: It holds something else.
    """
    if out.is_file():
        raise Refused(f'{out} is a file. Choose a folder with --out.')
    if not out.exists() or not any(out.iterdir()):
        return False
    path = out / marker
    if not path.exists():
        raise Refused(f'{out} is not empty and was not made by this tool. Choose another folder with --out.')
    try:
        found = json.loads(path.read_text())
        complete = found.pop('complete')
    except (ValueError, AttributeError, KeyError):
        raise Refused(f'{path} is damaged. Delete {out} or choose another folder with --out.') from None
    if found != settings:
        raise Refused(f'{out} holds scenes made with {found}, not {settings}. Delete it or choose another folder with --out.')
    return complete


def coco_instance(category, visible):
    """Annotation of one object from its visible pixels, a bool array (height, width) that is not empty."""
    ys, xs = np.nonzero(visible)
    left, top = int(xs.min()), int(ys.min())
    return {
        'category_id': int(category),
        'bbox': [float(left), float(top), float(xs.max() + 1 - left), float(ys.max() + 1 - top)],
        'area': int(visible.sum()),
        'segmentation': {'size': list(visible.shape), 'counts': compress(run_lengths(visible))},
        'iscrowd': 0,
    }


def run_lengths(mask):
    """Lengths of the runs of a mask (height, width), column by column: of background and object in turns, beginning with background."""
    flat = np.concatenate([[False], mask.T.ravel()])
    return np.diff([0, *np.flatnonzero(flat[1:] != flat[:-1]), mask.size]).tolist()


def compress(runs):
    """Run lengths as COCO's text: 5 bits a character, lowest first, numbers from the fourth on less the last but one."""
    text = ''
    for number, run in enumerate(runs):
        value = run - runs[number - 2] if number > 2 else run
        more = True
        while more:
            bits, value = value & 0x1F, value >> 5
            more = value != (-1 if bits & 0x10 else 0)
            text += chr(48 + (bits | 0x20 if more else bits))
    return text


def write_annotations(out, tree, kind, classes, records):
    """COCO files of one tree of scenes, one for each split."""
    for split in tree.counts:
        images, annotations = [], []
        for record in records:
            if record['path'].startswith(f'{tree.name}/{split}/'):
                images.append({'id': len(images), 'file_name': Path(record['path']).name, 'height': tree.side, 'width': tree.side})
                for instance in record['instances']:
                    annotations.append({'id': len(annotations) + 1, 'image_id': images[-1]['id'], **instance})
        content = {
            'info': {'description': f'{kind} scenes, {split}'},
            'licenses': [],
            'images': images,
            'annotations': annotations,
            'categories': [{'id': number, 'name': name} for number, name in enumerate(classes, 1)],
        }
        write_json(out / f'annotations/{tree.name}_{split}.json', content)


def write_sheet(out, trees, classes, records):
    """One picture with images of every tree, label maps below their scenes."""
    rows = []
    for tree in trees:
        prefix = f'{tree.name}/test/' if tree.labelled else f'{tree.name}/'
        paths = [out / r['path'] for r in records if r['path'].startswith(prefix)][: SHEET_WIDTH // tree.side // 2]
        rows.append(paths)
        labels = [Path(str(path).replace(f'/{tree.name}/', f'/{tree.name}_labels/')) for path in paths]
        if labels[0] != paths[0] and labels[0].exists():
            rows.append(labels)
    shades = [colorsys.hsv_to_rgb(i / len(classes), 0.75, 1 - 0.3 * (i % 2)) for i in range(len(classes))]
    colours = np.array([(0, 0, 0)] + [tuple(round(255 * c) for c in shade) for shade in shades], np.uint8)
    sheet = np.full((0, SHEET_WIDTH, 3), 255, np.uint8)
    for paths in rows:
        pictures = [np.asarray(Image.open(path)) for path in paths]
        pictures = [colours[p] if p.ndim == 2 else p for p in pictures]
        row = np.concatenate(pictures, axis=1).repeat(2, axis=0).repeat(2, axis=1)
        row = np.pad(row, ((4, 4), (0, SHEET_WIDTH - row.shape[1]), (0, 0)), constant_values=255)
        sheet = np.concatenate([sheet, row])
    save_png(out / 'sheet.png', sheet)


def save_png(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, compress_level=1, compress_type=zlib.Z_HUFFMAN_ONLY)  # noise does not compress any better


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
