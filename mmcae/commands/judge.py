"""Judge one or several frozen encoders by all that the labels of a data set allow, in one table (Markdown, JSON, CSV) and a page (HTML).

    mmcae judge CHECKPOINT --data FOLDER
    mmcae judge cae=CHECKPOINT mae=CHECKPOINT random --data FOLDER --out judged
    mmcae judge CHECKPOINT --data IMAGES --label-maps LABEL_MAPS
    mmcae judge CHECKPOINT --data labels.csv --split-by '^([^/]+)/'

DATA is a folder of class folders, a folder with images and label_maps, or a table (.csv): docs/judging.md. An encoder is a checkpoint,
NAME=CHECKPOINT, or `random`: the first one's architecture with random weights. Features and scores are kept in the cache of mmcae; the same
command again computes what is new.
"""

from pathlib import Path

INTERRUPTED = 'Interrupted. The same command goes on from here: what is computed is kept.'


def add_arguments(parser):
    parser.add_argument('encoders', nargs='+', metavar='ENCODER', help='CHECKPOINT, NAME=CHECKPOINT, or random')
    parser.add_argument('--data', required=True, help='folder of class folders, folder with images and label_maps, or a .csv file')
    parser.add_argument('--label-maps', metavar='FOLDER', help='label maps, where --data is a folder of images alone')
    parser.add_argument('--split-by', metavar='REGEX', help='finds the patient, slide or scene in a path; none is in two splits')
    parser.add_argument('--probes', nargs='+', metavar='NAME', help='only these (default: all that the labels allow)')
    parser.add_argument('--shots', type=int, nargs='+', help='labels a class of few-shot classification (default: 1 5 10, where there are)')
    parser.add_argument('--draws', type=int, default=10, help='how often they are drawn (default: %(default)s)')
    parser.add_argument(
        '--blocks', type=int, nargs='+', default=[1, 4], help='the linear probes read so many last blocks; the best counts (default: 1 4)'
    )
    parser.add_argument('--patches', type=int, default=100_000, help='that segmentation learns from (default: %(default)s)')
    parser.add_argument('--grid', type=int, nargs=2, metavar=('ROWS', 'COLUMNS'), help="patches of an image (default: the encoder's)")
    parser.add_argument('--seed', type=int, default=0, help='of splits, draws and random weights (default: %(default)s)')
    parser.add_argument('--num-heads', type=int, help='of encoders whose files do not tell')
    parser.add_argument('--batch-size', type=int, default=64, help='images at a time (default: %(default)s)')
    parser.add_argument('--workers', type=int, default=0, help='processes that read images (default: %(default)s)')
    parser.add_argument('--device', help="such as 'cpu' or 'cuda:1' (default: a GPU if there is one)")
    parser.add_argument(
        '--out', type=Path, default=Path('judged'), help='folder of judged.html, .md, .json and .csv (default: %(default)s)'
    )


def run(args):
    from ..apis.judging import judge
    from ..evaluation.probes import Settings
    from ..utils.files import write_file
    from ..visualization.report import write_report
    from .arguments import check_arguments, check_output_folder, named_encoders

    check_arguments(args, at_least=dict(grid=1, shots=1, draws=2, blocks=1, patches=1, seed=0, num_heads=1, batch_size=1, workers=0))
    check_output_folder(args.out, f'--out {args.out}')
    settings = Settings(
        blocks=tuple(args.blocks), shots=args.shots and tuple(args.shots), draws=args.draws, patches=args.patches, seed=args.seed
    )
    judgement = judge(
        named_encoders(args.encoders),
        args.data,
        args.probes,
        settings,
        label_maps=args.label_maps,
        split_by=args.split_by,
        grid=args.grid and tuple(args.grid),
        num_heads=args.num_heads,
        batch_size=args.batch_size,
        workers=args.workers,
        device=args.device,
    )
    args.out.mkdir(parents=True, exist_ok=True)
    for suffix, text in (('md', judgement.markdown()), ('json', judgement.json()), ('csv', judgement.csv())):
        write_file(args.out / f'judged.{suffix}', text)
    write_report({args.out.name: args.out}, args.out / 'judged.html', f'Frozen encoders: {", ".join(judgement.scores)}')
    print(f'\n{judgement.markdown()}\nWrote {args.out / "judged.html"}, .md, .json and .csv')
