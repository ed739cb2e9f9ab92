"""One page (HTML, one file) about work dirs: figures, curves, tables, pictures, configuration and its differences, environment.

    mmcae report WORK_DIR
    mmcae report work_dirs/a work_dirs/b --names "lr 1e-3" "lr 2e-3" --out report.html
    mmcae report WORK_DIR --images IMAGE IMAGE      # with reconstructions, attention and features of the newest checkpoint

Curves of runs that were resumed are joined. The page needs no network and no other file.
"""

from pathlib import Path


def add_arguments(parser):
    parser.add_argument('work_dirs', nargs='+', help='of training runs, or folders that mmcae judge or mmcae evaluate wrote')
    parser.add_argument('-o', '--out', default='report.html', help='the page to write (default: %(default)s)')
    parser.add_argument('--names', nargs='+', help='of the runs on the page, one per work dir (default: the work dirs)')
    parser.add_argument('--images', nargs='+', metavar='IMAGE', help='shown to the newest checkpoints, as by mmcae look')
    parser.add_argument('--title', help='of the page')


def check(args, parser):
    args.names = args.names or args.work_dirs
    if len(set(args.names)) != len(args.work_dirs):
        parser.error(f'--names needs a different name for each of the {len(args.work_dirs)} work dirs')


def run(args):
    from ..visualization.report import write_report
    from .arguments import check_arguments

    check_arguments(args, outputs=dict(out=('.html', '.htm')))
    work_dirs = dict(zip(args.names, args.work_dirs, strict=True))
    more = encoder_parts(work_dirs, args.images) if args.images else None
    print(f'Wrote {write_report(work_dirs, args.out, args.title, more)}')


def encoder_parts(work_dirs, images):
    """What the newest checkpoints of work dirs make of images, as a function of the page."""
    from ..apis import load_pretrained
    from ..apis.look import add_encoders, load_shown
    from ..engine.resume import newest_checkpoint
    from ..utils.errors import CheckpointError, ConfigError, DataError
    from ..visualization.report import config_of

    encoders = {}
    for name, folder in work_dirs.items():
        checkpoint, _ = newest_checkpoint(folder)
        if checkpoint is None:
            raise CheckpointError(f'{folder} has no checkpoint whose encoder could be shown: leave --images out')
        encoders[name] = shown = load_shown(checkpoint)
        config = config_of(Path(folder))
        if shown.model is not None and config is not None:
            try:
                shown.pretrained = load_pretrained(config.filename, checkpoint)
            except (CheckpointError, ConfigError, DataError) as error:  # such as a tokenizer that has gone
                shown.note = str(error)
    return lambda page: add_encoders(page, encoders, images)
