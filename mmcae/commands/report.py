"""One page (HTML, one file) about work dirs: figures, curves, tables, pictures, configuration and its differences, environment.

    mmcae report WORK_DIR
    mmcae report work_dirs/a work_dirs/b --names "lr 1e-3" "lr 2e-3" --out report.html

Curves of runs that were resumed are joined. The page needs no network and no other file.
"""


def add_arguments(parser):
    parser.add_argument('work_dirs', nargs='+', help='of training runs, or folders that mmcae judge or mmcae evaluate wrote')
    parser.add_argument('-o', '--out', default='report.html', help='the page to write (default: %(default)s)')
    parser.add_argument('--names', nargs='+', help='of the runs on the page, one per work dir (default: the work dirs)')
    parser.add_argument('--title', help='of the page')


def check(args, parser):
    args.names = args.names or args.work_dirs
    if len(set(args.names)) != len(args.work_dirs):
        parser.error(f'--names needs a different name for each of the {len(args.work_dirs)} work dirs')


def run(args):
    from ..visualization.report import write_report
    from .arguments import check_arguments

    check_arguments(args, outputs=dict(out=('.html', '.htm')))
    print(f'Wrote {write_report(dict(zip(args.names, args.work_dirs, strict=True)), args.out, args.title)}')
