"""From options to a folder of scenes."""

import os
from multiprocessing import Pool
from pathlib import Path

from rich.progress import track

from .composer import SCENES96, Composer
from .files import Refused, is_complete, write_annotations, write_json, write_sheet

VERSION = 1  # raise it when the images change, so that older data is not mistaken for new
CHUNK = 50  # images per job


def add_options(parser, out):
    """What every tool for scenes has.

    Args:
        parser (argparse.ArgumentParser): The tool's.
        out (str): Default output folder.
    """
    parser.add_argument('--out', type=Path, default=Path(out), help='folder to write (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='other scenes from the same split of the pictures (default: %(default)s)')
    parser.add_argument('--scale', type=float, default=1.0, help='multiplies the number of images (default: %(default)s)')
    parser.add_argument('--workers', type=int, default=os.cpu_count(), help='processes; does not change the result (default: %(default)s)')


def parse(parser):
    args = parser.parse_args()
    if not 0 < args.scale < float('inf') or args.workers < 1 or args.seed < 0:
        parser.error('--scale and --workers must be positive, --seed must not be negative')
    return args


def make_scenes(args, kind, open_pictures, trees, settings=None):
    """Compose all images of some trees, with labels and annotations, unless they are there already.

    Args:
        args (argparse.Namespace): Of :func:`parse`.
        kind (str): What is drawn; the marker is called after it.
        open_pictures (Callable): Gives the pictures, if they are needed.
        trees (Sequence[Tree]): What to compose.
        settings (dict, optional): What the result depends on besides seed and scale.

    Raises:
        Refused: The folder holds something else, or cannot be written.
    """
    marker, settings = f'{kind}_scenes.json', {'version': VERSION, 'seed': args.seed, 'scale': args.scale, **(settings or {})}
    if is_complete(args.out, marker, settings):
        print(f'{args.out} is complete already ({settings}): nothing to do.')
        return
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        write_json(args.out / marker, {**settings, 'complete': False})
    except OSError as error:
        raise Refused(f'Cannot write to {args.out}: {error.strerror}. Choose another folder with --out.') from error
    pictures = open_pictures()
    records = compose_all(args, pictures, trees)
    write_annotations(args.out, SCENES96, kind, pictures.classes, records)
    write_json(args.out / 'sources.json', {**pictures.provenance(), 'images': {r['path']: r['sources'] for r in records}})
    write_sheet(args.out, trees, pictures.classes, records)
    write_json(args.out / marker, {**settings, 'complete': True})
    print(f'Wrote {len(records):,} images to {args.out}; {args.out / "sheet.png"} shows some of each kind.')


def compose_all(args, pictures, trees):
    """Compose and write all images; one record per image, in a fixed order."""
    jobs = []
    for tree_index, tree in enumerate(trees):
        for split, count in tree.counts.items():
            count = max(10, round(count * args.scale))
            for start in range(0, count, CHUNK):
                jobs.append((tree_index, split, range(start, min(start + CHUNK, count))))
    composer = Composer(args.out, args.seed, pictures, trees)
    with Pool(args.workers, initializer=_start_worker, initargs=(composer,)) as pool:
        chunks = track(pool.imap(_run_job, jobs), total=len(jobs), description=f'Composing {pictures.kind} scenes')
        return [record for chunk in chunks for record in chunk]


_composer = None


def _start_worker(composer):
    global _composer
    _composer = composer


def _run_job(job):
    tree_index, split, indices = job
    return [_composer.write_image(tree_index, split, index) for index in indices]
