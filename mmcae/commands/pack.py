"""Pack a tree of images into few large files, for disks that hate small ones: tar shards in WebDataset's layout.

    mmcae pack SOURCE DESTINATION
    mmcae pack SOURCE DESTINATION --list FILE          # the files that it names alone
    mmcae pack SOURCE DESTINATION --min-tissue 0.2     # tiles of slides without the empty ones
    mmcae pack SOURCE DESTINATION --split-by '^([^/]+)/'   # train/ and val/, no folder in both
    mmcae pack --verify DESTINATION

The images' bytes are kept as they are. Every file is decoded to see that it can be; what is left out is counted, and listed in
DESTINATION/left_out.tsv. Interrupt it at will: the same command goes on from there. A config reads the result by
`dataset=dict(type='mmcae.PackedImages', data_root='DESTINATION', pipeline=...)`.
"""

import argparse
import os
from pathlib import Path

INTERRUPTED = 'Interrupted. The same command goes on from here.'


def add_arguments(parser):
    parser.add_argument('source', nargs='?', type=Path, metavar='SOURCE', help='folder with images, in any tree below it')
    parser.add_argument('destination', nargs='?', type=Path, metavar='DESTINATION', help='folder to write')
    parser.add_argument(
        '--list', type=Path, metavar='FILE', help='pack these files alone: one path on each line, relative to SOURCE or absolute'
    )
    parser.add_argument('--shard-size', type=float, default=500, metavar='MB', help='size of a shard (default: %(default)s)')
    parser.add_argument('--workers', type=int, default=os.cpu_count(), help='processes; does not change the result (default: %(default)s)')
    parser.add_argument(
        '--max-bad-files', type=share, default=0.01, metavar='SHARE', help='most files that may be unreadable (default: %(default)s)'
    )
    parser.add_argument('--channels', type=int, default=3, help='of the images, as mmcae.LoadImage will be told (default: %(default)s)')
    parser.add_argument('--white', type=float, help='the value that is white in files of more than 8 bits, as mmcae.LoadImage will be told')
    tissue = parser.add_argument_group('tiles of slides')
    tissue.add_argument(
        '--min-tissue', type=share, default=0.0, metavar='SHARE', help='leave out tiles with tissue on less than this share of their area'
    )
    tissue.add_argument(
        '--saturation', type=share, default=0.06, help='colour saturation from which on a pixel is tissue (default: %(default)s)'
    )
    split = parser.add_argument_group('training and validation')
    split.add_argument(
        '--split-by',
        metavar='REGEX',
        help='write DESTINATION/train and DESTINATION/val so that no id is in both; the expression finds the id (of a patient, a slide) in '
        'the path relative to SOURCE: its first group in parentheses, or all that matches',
    )
    split.add_argument('--val-share', type=share, default=0.1, help='share of the images for val/ (default: %(default)s)')
    split.add_argument('--seed', type=int, default=0, help='another seed puts other ids into val/ (default: %(default)s)')
    parser.add_argument('--verify', type=Path, metavar='FOLDER', help='only read a packed folder again and compare checksums')


def check(args, parser):
    if args.verify is None and args.destination is None:
        parser.error('give SOURCE and DESTINATION, or --verify FOLDER')
    if args.verify is not None and args.source is not None:
        parser.error('--verify takes a packed folder alone')
    if not 0 < args.shard_size < float('inf') or args.workers < 0 or args.seed < 0:
        parser.error('--shard-size must be above 0, --workers and --seed must not be negative')
    if args.white is not None and not args.white > 0:
        parser.error('--white must be above 0')
    if args.channels < 1 or (args.min_tissue and args.channels != 3):
        parser.error('--channels must be at least 1, and 3 with --min-tissue: tissue is told by its colour')
    if args.split_by is not None and not 0 < args.val_share < 1:
        parser.error('--val-share must lie between 0 and 1')


def share(text):
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f'{text} is no share: it must lie between 0 and 1')
    return value


def run(args):
    verify(args.verify) if args.verify else pack(args)


def pack(args):
    from ..datasets.sources import packing
    from ..utils.errors import DataError

    if args.destination.resolve().is_relative_to(args.source.resolve()):
        raise DataError(
            f'{args.destination} lies in {args.source}, and would belong to its images from then on: name a folder outside of it'
        )
    paths = source_paths(args.source, args.list)
    for name, members, settings in parts(args, paths):
        folder = args.destination / name
        files = packing.SourceFiles(args.source, members, args.min_tissue, args.saturation, args.channels, args.white)
        manifest = packing.pack(files, folder, settings, round(args.shard_size * 1e6), args.workers, args.max_bad_files)
        left_out = ''.join(f', {count:,} {reason}' for reason, count in manifest.left_out.items())
        print(
            f'{folder}: {manifest.images:,} of {manifest.consumed:,} files in {len(manifest.shards):,} shards, '
            f'{manifest.bytes / 1e9:.2f} GB, read again and compared{left_out}' + (f' ({folder / packing.LEFT_OUT})' if left_out else '')
        )


def source_paths(source, listed):
    """The images to pack, relative to the source folder, found as mmcae.ImageFolder finds them."""
    from ..datasets import ImageFolder
    from ..utils.errors import DataError

    folder = ImageFolder(data_root=str(source), ann_file=str(listed.absolute()) if listed else '')
    paths = [os.path.relpath(folder.get_data_info(i)['img_path'], source) for i in range(len(folder))]
    outside = next((path for path in paths if path.startswith('..')), None)
    if outside:
        raise DataError(f'{listed} names {outside}, which is not below {source}: name a folder that all of them are in')
    return paths


def parts(args, paths):
    """What to pack: name of the folder below the destination, its paths, and what makes it so."""
    if args.split_by is None:
        return [('', paths, {})]
    from ..datasets.sources.group_split import group_split, groups_of

    sides = group_split(paths, args.split_by, args.val_share, args.seed)
    groups = groups_of(paths, args.split_by)
    made = []
    for name, ids in sides.items():
        own = set(ids)
        members = [path for path, group in zip(paths, groups, strict=True) if group in own]
        made.append((name, members, dict(split_by=args.split_by, val_share=args.val_share, seed=args.seed, ids=ids)))
        print(f'{name}: {len(members):,} files of {len(ids):,} ids')
    return made


def verify(folder):
    from ..datasets.sources import packing
    from ..datasets.sources.shards import MANIFEST
    from ..utils.errors import DataError
    from ..utils.progress import Display

    sides = [folder / name for name in ('train', 'val') if (folder / name / MANIFEST).exists()]
    damaged, display = [], Display()
    for part in sides or [folder]:
        images, problems = packing.verify(part, lambda text: display.status(lambda: text))
        display.close()
        damaged += problems
        print(f'{part}: {images:,} images, ' + ('all as they were packed' if not problems else f'{len(problems)} shards are damaged'))
    if damaged:
        raise DataError('; '.join(damaged))
