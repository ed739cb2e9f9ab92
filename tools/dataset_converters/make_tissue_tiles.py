"""Draw tiles that look like stained tissue, in folders of slides as the usual tilers write them: to try things on before one's own slides.

Haematoxylin (nuclei) and eosin (the rest) are mixed by the law of Beer and Lambert. Slides differ in the strength of the stains and in
magnification, tiles in the kind of tissue. The same arguments always give the same files. Writes

    OUT/PATIENT_SLIDE/PATIENT_SLIDE_xCOLUMN_yROW.jpg    the tiles
    OUT/slides.csv     path (the folder), patient, mpp (microns per pixel): what mmcae.MicronScale reads
    OUT/tiles.csv      path, patient, slide, mpp, tissue: the truth about every tile

    python tools/dataset_converters/make_tissue_tiles.py --out data/tissue
"""

import argparse
import csv
import functools
import os
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

# Kinds of tissue: nuclei in 1,000 square microns, their mean radius in microns, how much longer than wide they are, the amount of eosin,
# and hollows (lumens, fat cells, glass): how many in 10,000 square microns, and their radius in microns.
KINDS = {
    'epithelium': dict(nuclei=9, radius=3.6, stretch=1.2, eosin=0.45, hollows=1.0, hollow_radius=9),
    'stroma': dict(nuclei=2, radius=2.6, stretch=3.0, eosin=0.75, hollows=0, hollow_radius=1),
    'lymphocytes': dict(nuclei=18, radius=2.4, stretch=1.0, eosin=0.25, hollows=0, hollow_radius=1),
    'fat': dict(nuclei=0.4, radius=2.2, stretch=2.0, eosin=0.35, hollows=8, hollow_radius=22),
    'glass': dict(nuclei=0.05, radius=3.0, stretch=1.0, eosin=0.02, hollows=0, hollow_radius=1),
}
SHARES = (0.3, 0.3, 0.15, 0.1, 0.15)  # of the kinds, in the mean over all slides


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path('data/tissue'), help='folder to write (default: %(default)s)')
    parser.add_argument('--tiles', type=int, default=5000, help='number of tiles in all (default: %(default)s)')
    parser.add_argument('--slides', type=int, default=50, help='number of slides, two for each patient (default: %(default)s)')
    parser.add_argument('--side', type=int, default=256, help='height and width of a tile in pixels (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='other tissue (default: %(default)s)')
    parser.add_argument('--workers', type=int, default=os.cpu_count(), help='processes; does not change the result (default: %(default)s)')
    args = parser.parse_args()
    if min(args.tiles, args.slides, args.workers) < 1 or args.side < 16 or args.seed < 0 or args.tiles < args.slides:
        parser.error('--slides and --workers must be positive, --seed not negative, --side at least 16, --tiles at least --slides')
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        parser.error(f'{args.out} is not empty. Choose another folder with --out, or remove it')
    from mmcae.utils.errors import one_line_errors  # after the arguments: --help must not wait for torch

    with one_line_errors():
        make_tiles(args)


def make_tiles(args):
    """Draw all tiles and write the two tables."""
    slides = [make_slide(args.seed, number) for number in range(args.slides)]
    jobs = [(slides[number % args.slides], number // args.slides) for number in range(args.tiles)]
    for slide in slides:
        (args.out / slide['path']).mkdir(parents=True)
    draw = functools.partial(write_tile, args.out, args.side, args.seed)
    with Pool(args.workers) as pool:
        tiles = list(track(pool.imap(draw, jobs, chunksize=16), 'Drawing tiles', total=len(jobs)))
    write_table(args.out / 'slides.csv', [{key: slide[key] for key in ('path', 'patient', 'mpp')} for slide in slides])
    write_table(args.out / 'tiles.csv', sorted(tiles, key=lambda tile: tile['path']))
    print(f'Wrote {len(tiles):,} tiles of {args.slides} slides to {args.out}')


def make_slide(seed, number):
    """What the tiles of one slide have in common: name, patient, magnification, strength of the stains, mix of tissues."""
    rng = np.random.default_rng([seed, number])
    patient = f'patient{number // 2:03d}'
    return dict(
        number=number,
        path=f'{patient}_slide{number % 2}',
        patient=patient,
        mpp=(0.25, 0.5)[int(rng.integers(2))],
        stains=rng.uniform((0.7, 0.6), (1.3, 1.4)),
        shares=rng.dirichlet(np.multiply(SHARES, 20)),
    )


def write_tile(out, side, seed, job):
    """Draw and save a tile; returns its line for tiles.csv."""
    slide, number = job
    rng = np.random.default_rng([seed, slide['number'], number])
    kind = list(KINDS)[int(rng.choice(len(KINDS), p=slide['shares']))]
    column, row = number % 16, number // 16
    path = f'{slide["path"]}/{slide["path"]}_x{column * side:05d}_y{row * side:05d}.jpg'
    Image.fromarray(draw_tissue(rng, kind, side, slide['mpp'], slide['stains'])).save(out / path, quality=90)
    return dict(path=path, patient=slide['patient'], slide=slide['path'], mpp=slide['mpp'], tissue=kind)


def draw_tissue(rng, kind, side, mpp, stains):
    """One tile of a kind of tissue.

    Args:
        rng (np.random.Generator): Where chance comes from.
        kind (str): One of `KINDS`.
        side (int): Height and width in pixels.
        mpp (float): Microns per pixel.
        stains (Sequence[float]): Strength of haematoxylin and eosin, around 1.

    Returns:
        np.ndarray: uint8 (side, side, 3), RGB.
    """
    from mmcae.datasets.transforms.tissue import stains_to_rgb

    tissue, microns = KINDS[kind], side * mpp
    eosin = tissue['eosin'] * (1 + 0.35 * clouds(rng, side, 8 / mpp) + 0.2 * clouds(rng, side, 2 / mpp))
    haematoxylin = 0.08 * tissue['eosin'] * (1 + 0.3 * clouds(rng, side, 4 / mpp))
    for _ in range(rng.poisson(tissue['hollows'] * microns**2 / 1e4)):
        radius = tissue['hollow_radius'] * rng.uniform(0.6, 1.3)
        put(eosin, rng, rng.uniform(0, microns, 2) / mpp, (radius / mpp, radius / mpp * rng.uniform(0.8, 1)), lambda old, m: old * (1 - m))
    grain = 1 + 0.25 * clouds(rng, side, 0.8 / mpp)
    for _ in range(rng.poisson(tissue['nuclei'] * microns**2 / 1e3)):
        centre = rng.uniform(0, microns, 2) / mpp
        if kind != 'glass' and eosin[tuple(centre.astype(int) % side)] < 0.5 * tissue['eosin']:
            continue  # no nucleus in a hollow
        radius = tissue['radius'] * rng.uniform(0.8, 1.25) / mpp
        stretch = np.sqrt(tissue['stretch'] * rng.uniform(0.85, 1.2))
        amount = rng.uniform(0.8, 1.5)
        put(haematoxylin, rng, centre, (radius * stretch, radius / stretch), lambda old, m, a=amount: np.maximum(old, a * m))
    amounts = np.stack([haematoxylin * grain * stains[0], eosin * stains[1], np.zeros_like(eosin)], axis=-1)
    return stains_to_rgb(np.maximum(amounts, 0) + rng.normal(0, 0.015, amounts.shape))


def clouds(rng, side, size):
    """Smooth noise of mean 0 and about unit variance, (side, side), with structures of `size` pixels."""
    cells = max(2, round(side / size) + 1)
    coarse = Image.fromarray(rng.normal(size=(cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.float64)


def put(field, rng, centre, axes, change):
    """Change a field (side, side) within an ellipse with a soft edge, turned at random.

    Args:
        field (np.ndarray): Changed in place.
        rng (np.random.Generator): For the angle.
        centre (np.ndarray): Row and column in pixels.
        axes (tuple[float, float]): Half axes in pixels.
        change (Callable): From the old values and the ellipse's coverage, 0 to 1, to the new values.
    """
    reach = int(max(axes)) + 3
    top, left = (max(0, int(c) - reach) for c in centre)
    bottom, right = (min(len(field), int(c) + reach + 1) for c in centre)
    angle = rng.uniform(0, np.pi)
    if top >= bottom or left >= right:
        return
    y, x = np.mgrid[top:bottom, left:right] - np.reshape(centre, (2, 1, 1))
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    distance = (np.hypot(u / axes[0], v / axes[1]) - 1) * min(axes)  # in pixels, negative inside
    coverage = 1 / (1 + np.exp(np.clip(2 * distance, -30, 30)))
    field[top:bottom, left:right] = change(field[top:bottom, left:right], coverage)


def write_table(path, rows):
    with open(path, 'w', newline='', encoding='utf-8') as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(rows)


if __name__ == '__main__':
    main()
