"""Features of all images of a folder, in one file: .npz, .parquet or .zarr.

    mmcae embed ENCODER FOLDER --out features.npz
    mmcae embed ENCODER FOLDER --out features.parquet --features cls mean --dtype float16 --amp
    mmcae embed ENCODER FOLDER --out patches.zarr --features patch --gpus 8

FOLDER may be one that `mmcae pack` has written. Memory does not grow with the number of images. Interrupt it at will: the same command goes
on from there. Files that cannot be read are left out, and listed in OUT.bad_files.tsv. Read the result batch by batch with
mmcae.apis.read_features, or with the format's own library: docs/features.md.
"""

import os
import sys
from pathlib import Path

INTERRUPTED = 'Interrupted. The same command goes on from here.'


def add_arguments(parser):
    parser.add_argument('encoder', help='any checkpoint with an encoder: of mmcae, the authors, mmpretrain, or a released ViT')
    parser.add_argument('folder', help='with images in any tree below it')
    parser.add_argument('--out', required=True, metavar='FILE', help='to write: .npz, .parquet (needs pyarrow) or .zarr (needs zarr)')
    parser.add_argument(
        '--features',
        nargs='+',
        choices=['cls', 'mean', 'patch'],
        default=['cls'],
        help='the cls token, the mean over the patches, all patches (default: cls)',
    )
    parser.add_argument(
        '--img-size', type=int, nargs='+', metavar='PIXELS', help="one number, or height and width (default: the encoder's)"
    )
    parser.add_argument('--batch-size', type=int, default=64, help='images at a time (default: %(default)s)')
    parser.add_argument('--workers', type=int, help='processes that read images (default: by the cores)')
    parser.add_argument('--device', help="such as 'cpu' or 'cuda:1' (default: a GPU if there is one)")
    parser.add_argument('--gpus', type=int, default=1, help='processes, one for each GPU (default: %(default)s)')
    parser.add_argument('--amp', action='store_true', help='mixed precision: bfloat16 where the machine has it, else float16')
    parser.add_argument(
        '--dtype', choices=['float32', 'float16'], default='float32', help='of the features in the file (default: %(default)s)'
    )
    parser.add_argument('--list', metavar='FILE', help='take these files alone: one path on each line, relative to FOLDER or absolute')
    parser.add_argument('--num-heads', type=int, help='of the encoder, where its file does not tell')
    parser.add_argument('--overwrite', action='store_true', help='start over, and replace FILE')


def check(args, parser):
    if args.gpus < 1:
        parser.error('--gpus must be at least 1')
    if args.img_size is not None and len(args.img_size) > 2:
        parser.error('--img-size takes one or two numbers')


def run(args):
    from ..apis.embedding import check_arguments, embed

    check_arguments(
        Path(args.out), args.features, args.batch_size, args.workers, args.dtype, args.overwrite
    )  # before other processes start
    if args.gpus > 1 and 'RANK' not in os.environ:
        several = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', str(args.gpus)]
        os.execv(sys.executable, [sys.executable, *several, '-m', 'mmcae', 'embed', *words(args)])
    size = args.img_size and (args.img_size[0] if len(args.img_size) == 1 else tuple(args.img_size))
    embed(
        args.encoder,
        args.folder,
        args.out,
        features=args.features,
        img_size=size,
        batch_size=args.batch_size,
        workers=args.workers,
        device=args.device,
        amp=args.amp,
        dtype=args.dtype,
        list_file=args.list,
        overwrite=args.overwrite,
        num_heads=args.num_heads,
    )


def words(args):
    """The arguments as they were given."""
    given = [
        args.encoder,
        args.folder,
        '--features',
        *args.features,
        *(['--amp'] if args.amp else []),
        *(['--overwrite'] if args.overwrite else []),
    ]
    for name in ('out', 'batch_size', 'workers', 'device', 'dtype', 'list', 'num_heads'):
        if getattr(args, name) is not None:
            given += [f'--{name.replace("_", "-")}', str(getattr(args, name))]
    return [*given, *(['--img-size', *map(str, args.img_size)] if args.img_size else [])]
