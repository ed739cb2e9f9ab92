"""Plot what training runs logged, one line per run: losses and metrics, or the quantities you name.

mmcae curves WORK_DIR [WORK_DIR ...] --out curves.png
mmcae curves work_dirs/a work_dirs/b --keys loss_main lr --names "lr 1e-3" "lr 2e-3"
"""


def add_arguments(parser):
    parser.add_argument('work_dirs', nargs='+', help='work dirs of training runs; a run that was resumed is one curve')
    parser.add_argument('-o', '--out', default='curves.png', help='the picture to write (default: %(default)s)')
    parser.add_argument('--keys', nargs='+', default=[], help='quantities to plot (default: losses and metrics logged more than once)')
    parser.add_argument('--names', nargs='+', help='for the legend, one per work dir (default: the work dirs)')


def check(args, parser):
    args.names = args.names or args.work_dirs
    if len(set(args.names)) != len(args.work_dirs):
        parser.error(f'--names needs a different name for each of the {len(args.work_dirs)} work dirs')


def run(args):
    from ..visualization.curves import plot_curves, read_scalars
    from ..visualization.sheet import save_picture
    from .arguments import FIGURES, check_arguments

    check_arguments(args, outputs=dict(out=FIGURES))
    runs = {name: read_scalars(work_dir) for name, work_dir in zip(args.names, args.work_dirs, strict=True)}
    save_picture(plot_curves(runs, args.keys), args.out)
